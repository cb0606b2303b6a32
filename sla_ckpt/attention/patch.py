"""Where attention calls are intercepted, and who is served.

``torch.nn.functional.scaled_dot_product_attention`` is replaced while at least one user holds the
patch, and only then. The replacement asks a context variable who is active. A thread that entered
nothing has an empty one and gets the original function, whatever other threads do.

Backward is the hard part. Gradient checkpointing runs the forward again there, on CUDA in a
thread of the autograd engine, perhaps after the session ended or from another thread than the
forward's. So while the patch is held, the functions given to ``torch.utils.checkpoint`` are bound
to what was active when they were given, and see exactly that when they are run again. Other ways
of recomputing (a trainer's own autograd function) get what is active where ``backward()`` was
called.

A ``TorchFunctionMode`` would be the tidier hook, but it is not active during recomputation. What
else is patched serves only that binding: two names in ``torch.utils.checkpoint``, one in
``torch.autograd``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor

from sla_ckpt.attention.scopes import (
    AttentionCall,
    AttentionHandler,
    Scope,
    active_handler,
    in_backward,
    only_dense,
    pushed,
    running_backward,
)

_F = TypeVar("_F", bound=Callable[..., Any])


def run_outside_graphs(function: _F, *, recursive: bool = True) -> _F:
    """Keep torch.compile from tracing ``function``; with fullgraph=True it says so and stops.

    What ``function`` calls may be compiled again if not ``recursive``.
    """
    disable: Any = torch.compiler.disable
    options: dict[str, Any] = {"recursive": recursive}
    if "reason" in inspect.signature(disable).parameters:  # torch >= 2.8
        options["reason"] = (
            "SLA attention runs outside compiled graphs; compile without fullgraph=True "
            "while sla_ckpt is on"
        )
    return disable(function, **options)  # type: ignore[no-any-return]


@contextlib.contextmanager
def scope(handler: AttentionHandler | None) -> Iterator[None]:
    """Send this context's attention calls to ``handler``; to dense attention if it is None.

    Scopes nest, the innermost wins. They may be left in any order and from another context than
    they were entered in; only this scope's own entry goes.
    """
    with _entered(Scope(handler)):
        yield


@contextlib.contextmanager
def _entered(entry: Scope) -> Iterator[None]:
    with _patch.held(), pushed(entry):
        yield


def _make_engine_run_backward(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with running_backward():
            return original(*args, **kwargs)

    return run_backward


class _BoundFunction:
    """A checkpointed function together with what was active when it was checkpointed."""

    def __init__(self, function: Callable[..., Any], entry: Scope) -> None:
        self._function = function
        self._entry = entry
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _entered(self._entry):
            return self._function(*args, **kwargs)


def _bind(function: Callable[..., Any]) -> _BoundFunction:
    return _BoundFunction(function, Scope(active_handler(), resumed=True))


def _make_attention(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def scaled_dot_product_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = AttentionCall(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
            recompute=in_backward(),
            original=original,
        )
        handler = active_handler()
        if handler is None:
            return call.dense()
        # Whatever the handler calls (observers, kernels, a patch below this one) is dense.
        with only_dense():
            return handler.attend(call)

    # Dynamo must not trace into this: which session is active is known only when it runs.
    return run_outside_graphs(scaled_dot_product_attention)


def _make_checkpoint_function(original: Any) -> Any:
    class CheckpointFunction(original):  # type: ignore[misc]
        @classmethod
        def apply(cls, run_function: Callable[..., Any], *args: Any) -> Any:
            return original.apply(_bind(run_function), *args)

    return CheckpointFunction


def _make_checkpoint_generator(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def generator(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(_bind(fn), *args, **kwargs)

    return generator


class _PatchedAttribute:
    """One module attribute that can be replaced and put back.

    The replacement is made once per original, so that compiled code guarded on its identity stays
    valid from one use to the next.
    """

    def __init__(self, module: Any, name: str, make: Callable[[Any], Any]) -> None:
        self._module, self._name, self._make = module, name, make
        self._pairs: list[tuple[Any, Any]] = []  # (original, replacement), by identity

    def install(self) -> None:
        current = getattr(self._module, self._name)
        for original, replacement in self._pairs:
            if current is replacement:
                return
            if current is original:
                break
        else:
            replacement = self._make(current)
            self._pairs.append((current, replacement))
        setattr(self._module, self._name, replacement)

    def remove(self) -> None:
        # If somebody patched over us in the meantime, theirs stays; ours, below it, is inert.
        # If they then put ours back, there may be several of ours to take off: newest first.
        for original, replacement in reversed(self._pairs):
            if getattr(self._module, self._name) is replacement:
                setattr(self._module, self._name, original)


class _Patch:
    """All patched attributes, in place while anybody holds them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders = 0
        self._attributes = (
            _PatchedAttribute(F, "scaled_dot_product_attention", _make_attention),
            _PatchedAttribute(torch_checkpoint, "CheckpointFunction", _make_checkpoint_function),
            _PatchedAttribute(torch.autograd, "_engine_run_backward", _make_engine_run_backward),
            _PatchedAttribute(
                torch_checkpoint,
                "_checkpoint_without_reentrant_generator",
                _make_checkpoint_generator,
            ),
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            for attribute in self._attributes:
                attribute.install()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    for attribute in self._attributes:
                        attribute.remove()


_patch = _Patch()
