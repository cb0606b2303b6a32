"""Bind a session to a model: SLA inside that model's calls and nowhere else.

The module's class is swapped for a subclass whose ``__call__`` enters the session. Unlike a
replaced ``forward`` or a hook this survives the offloading of accelerate and diffusers, which puts
``forward`` back after each pipeline call, and it cannot leak when a call is interrupted. Copies
and pickles of the model are of the plain class.

Blocks (members of a ModuleList) are bound like the model itself: what recomputes a block in
backward calls the block, not the model.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from sla_ckpt.attention.patch import run_outside_graphs, scope
from sla_ckpt.attention.scopes import is_active
from sla_ckpt.attention.session import SLASession

_sessions: WeakKeyDictionary[nn.Module, SLASession] = WeakKeyDictionary()
#: Those keys of _sessions that are whole models, not blocks.
_models: WeakSet[nn.Module] = WeakSet()
_lock = threading.RLock()


def bind(model: nn.Module, session: SLASession) -> None:
    """Let ``session`` serve ``model``. A session already bound there is closed and replaced."""
    with _lock:
        unbind(model)
        for module in _entry_points(model):
            base = type(module)
            if not issubclass(base, _Scoped):
                plain: Any = base
                module.__class__ = _scoped_class(plain)
            _sessions[module] = session
        _models.add(model)


def unbind(model: nn.Module) -> bool:
    """Undo :func:`bind`; False when nothing was bound."""
    found = False
    with _lock:
        _models.discard(model)
        for module in _entry_points(model):
            session = _sessions.pop(module, None)
            if session is None:
                continue
            found = True
            session.close()
            # A wrapper may have derived its own class from ours; ours is then inert below it.
            if "_sla_base" in vars(type(module)):
                module.__class__ = vars(type(module))["_sla_base"]
    return found


def session_of(model: nn.Module) -> SLASession | None:
    """The session that serves ``model``."""
    return _sessions.get(model)


def _entry_points(model: nn.Module) -> Iterator[nn.Module]:
    """The model, what a compiled model wraps, and the blocks; each once."""
    seen: set[int] = set()
    candidates = [model]
    for module in model.modules():
        wrapped = getattr(module, "_orig_mod", None)
        if isinstance(wrapped, nn.Module):
            candidates.append(wrapped)
        if isinstance(module, nn.ModuleList):
            candidates.extend(module)
    for module in candidates:
        if id(module) not in seen:
            seen.add(id(module))
            yield module


class _Scoped:
    """Marks the classes made here."""


@run_outside_graphs
def _enter(module: nn.Module) -> contextlib.AbstractContextManager[None] | None:
    session = _sessions.get(module)
    if session is None or is_active(session):
        return None
    entered = scope(session)
    entered.__enter__()
    return entered


@run_outside_graphs
def _leave(entered: contextlib.AbstractContextManager[None]) -> None:
    entered.__exit__(None, None, None)


@run_outside_graphs
def _warn_if_unused(module: nn.Module) -> None:
    session = _sessions.get(module)
    if session is not None and module in _models:
        session.warn_if_unused(stacklevel=3)


@functools.cache
def _scoped_class(base: Any) -> type[nn.Module]:
    # Not traced: the scope must be entered when the code runs, not when it is compiled.
    @functools.partial(run_outside_graphs, recursive=False)
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        entered = _enter(self)
        if entered is None:
            return base.__call__(self, *args, **kwargs)
        try:
            result = base.__call__(self, *args, **kwargs)
        finally:
            _leave(entered)
        _warn_if_unused(self)
        return result

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        reduced: Any = base.__reduce_ex__(self, protocol)
        function, arguments, *rest = reduced
        plain = tuple(base if argument is scoped else argument for argument in arguments)
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]
            function = base.__new__  # pickle insists that __newobj__ gets the object's own class
        return (base if function is scoped else function, plain, *rest)

    def _replicate_for_data_parallel(self: nn.Module) -> nn.Module:
        replica: nn.Module = base._replicate_for_data_parallel(self)
        session = _sessions.get(self)
        if session is not None:
            _sessions[replica] = session
        return replica

    scoped: type[nn.Module] = type(
        base.__name__,
        (base, _Scoped),
        {
            "__call__": __call__,
            "__reduce_ex__": __reduce_ex__,
            "_replicate_for_data_parallel": _replicate_for_data_parallel,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_sla_base": base,
        },
    )
    return scoped
