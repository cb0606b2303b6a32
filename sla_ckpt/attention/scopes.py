"""Who receives the attention calls of this thread, in the forward and in backward.

A stack in a context variable: a thread that entered nothing has an empty one, whatever other
threads do. Threads of the autograd engine always have an empty one; for them see
:func:`active_handler`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sla_ckpt.errors import AttentionError


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The arguments of one ``scaled_dot_product_attention`` call.

    Attributes:
        recompute: The call repeats one of the forward, inside backward.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool
    recompute: bool
    original: Callable[..., Tensor]

    def dense(self) -> Tensor:
        """What the call gives without SLA."""
        extra: dict[str, Any] = {"enable_gqa": True} if self.enable_gqa else {}
        return self.original(
            self.query,
            self.key,
            self.value,
            attn_mask=self.attn_mask,
            dropout_p=self.dropout_p,
            is_causal=self.is_causal,
            scale=self.scale,
            **extra,
        )


class AttentionHandler(Protocol):
    """What a session must offer to receive attention calls."""

    @property
    def closed(self) -> bool: ...

    def attend(self, call: AttentionCall) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Scope:
    """One entry of the stack. Without a handler it means: dense from here on.

    ``resumed`` scopes belong to a recomputation and outlive the session.
    """

    handler: AttentionHandler | None
    resumed: bool = False

    @property
    def live(self) -> bool:
        return self.handler is None or self.resumed or not self.handler.closed


_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("sla_ckpt_scopes", default=())
_DENSE = Scope(None)


@contextlib.contextmanager
def pushed(entry: Scope) -> Iterator[None]:
    """Put ``entry`` on top of the stack. Leaving takes off this entry only, wherever it is then."""
    _scopes.set((*_scopes.get(), entry))
    try:
        yield
    finally:
        _scopes.set(tuple(other for other in _scopes.get() if other is not entry))


@contextlib.contextmanager
def only_dense() -> Iterator[None]:
    """Dense attention inside, whatever is on the stack."""
    token = _scopes.set((_DENSE,))
    try:
        yield
    finally:
        _scopes.reset(token)


def is_active(handler: AttentionHandler) -> bool:
    """Whether this context's attention calls go to ``handler`` now."""
    return active_handler() is handler


def active_handler() -> AttentionHandler | None:
    """Who receives an attention call made here and now; None for dense attention.

    Raises:
        AttentionError: In a thread of the autograd engine, when it cannot be told.
    """
    for entry in reversed(_scopes.get() or _scopes_of_backward()):
        if entry.live:
            return entry.handler
    return None


def in_backward() -> bool:
    """Whether this thread is executing a node of a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


@dataclass(frozen=True, eq=False)
class _Backward:
    """A backward pass that is running: the thread that called it and what was active there."""

    thread: int
    handler: AttentionHandler | None


_backwards: list[_Backward] = []


def _scopes_of_backward() -> tuple[Scope, ...]:
    """For recomputation in a thread of the autograd engine: the scope of who called backward.

    The engine does not tell which backward pass a thread works for. Unless this thread called one
    itself, all that run must agree.

    Raises:
        AttentionError: Backward passes with different sessions run at the same time.
    """
    if not in_backward():
        return ()
    running = tuple(_backwards)
    thread = threading.get_ident()
    own = [backward for backward in running if backward.thread == thread]
    handlers = {id(backward.handler): backward.handler for backward in own[-1:] or running}
    if len(handlers) > 1:
        raise AttentionError(
            "backward passes with and without this SLA session, or with several, run at once, "
            "and one of them recomputes attention outside torch.utils.checkpoint",
            hint="use torch.utils.checkpoint or enable_sla, or run one backward pass at a time",
        )
    return tuple(Scope(handler) for handler in handlers.values())


@contextlib.contextmanager
def running_backward() -> Iterator[None]:
    """Record, for recomputation, what is active where a backward pass is called."""
    running = _Backward(threading.get_ident(), active_handler())
    _backwards.append(running)
    try:
        yield
    finally:
        _backwards.remove(running)
