"""Turn SLA on: for a block of code (:func:`use_sla`) or for one model (:func:`enable_sla`).

Both raise before the first call when the state cannot run, and never fall back to dense attention
in silence: a call that SLA should take and cannot is an error, a call that is dense by rule is
counted with its reason in ``session.stats``, and a model none of whose calls go to SLA is warned
about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from sla_ckpt.attention.patch import scope
from sla_ckpt.attention.resolve import Checkpoint, resolve
from sla_ckpt.attention.session import Missing, Observer, SLASession, SLAUnusedWarning
from sla_ckpt.errors import UsageError
from sla_ckpt.state import SLASettings

__all__ = [
    "Checkpoint",
    "SLASession",
    "SLAUnusedWarning",
    "disable_sla",
    "enable_sla",
    "use_sla",
    "without_sla",
]

#: Attributes under which diffusers pipelines keep their denoisers.
DENOISERS = ("transformer", "transformer_2", "unet")


@contextlib.contextmanager
def use_sla(
    checkpoint_or_state: Checkpoint,
    *,
    kernel: str = "auto",
    variant: str | None = None,
    settings: SLASettings | None = None,
    trainable: bool = False,
    missing: Missing = "error",
    observer: Observer | None = None,
) -> Iterator[SLASession]:
    """SLA for every model that this thread runs inside the ``with`` block.

    Blocks nest, the innermost counts; other threads are not affected. ``backward()`` may run
    inside or after the block, in any thread. To leave a pipeline's VAE and text encoders alone,
    use :func:`enable_sla`.

    Args:
        checkpoint_or_state: See :func:`sla_ckpt.attention.resolve.resolve`.
        kernel: ``"auto"``, ``"triton"``, ``"reference"`` or ``"external"``.
        variant: ``"main"`` or ``"sla-1"``: which SLA made the state, where it does not say so.
        settings: In place of the state's own.
        trainable: Whether the projections require gradients (``session.parameters()``).
        missing: What happens when a call meets a pair that the state lacks: ``"error"`` raises,
            ``"zero"`` starts it from zero.
        observer: Called with (pair, q, k, v), q to v of shape ``[B, H, L, D]``, before each
            sparse forward call.

    Yields:
        The session: modules, parameters, statistics, ``to_state()``.

    Raises:
        AttentionError: The state cannot run; at once, or at the call that shows it.
        TargetNotFoundError, FormatError, HubError: The state cannot be read.

    Example:
        >>> with use_sla("output/checkpoint-500") as session:
        ...     model(**inputs)
        >>> print(session.stats.summary())
    """
    session = _session(
        checkpoint_or_state,
        kernel=kernel,
        variant=variant,
        settings=settings,
        trainable=trainable,
        missing=missing,
        observer=observer,
    )
    try:
        with scope(session):
            yield session
    finally:
        session.close()
    session.warn_if_unused(stacklevel=3)


@contextlib.contextmanager
def without_sla() -> Iterator[None]:
    """Dense attention inside the ``with`` block, also inside :func:`use_sla`.

    A model bound by :func:`enable_sla` still runs SLA.
    """
    with scope(None):
        yield


def enable_sla(
    model: Any,
    checkpoint: Checkpoint,
    *,
    kernel: str = "auto",
    variant: str | None = None,
    settings: SLASettings | None = None,
    trainable: bool = False,
    missing: Missing = "error",
    observer: Observer | None = None,
) -> SLASession:
    """SLA inside the calls of one model, from now until :func:`disable_sla`, in every thread.

    Args:
        model: A module, or a diffusers pipeline: then its denoisers (transformer, transformer_2,
            unet) share the session, and VAE, text encoders and ControlNets stay dense.
        checkpoint: As for :func:`use_sla`, like the other arguments.

    Returns:
        The session. A session that the model already had ends.

    Raises:
        As :func:`use_sla`; UsageError when ``model`` has no denoiser.

    Example:
        >>> pipe = DiffusionPipeline.from_pretrained("org/model", torch_dtype=torch.bfloat16)
        >>> enable_sla(pipe, "org/model")
        >>> image = pipe("a lighthouse in fog").images[0]
    """
    modules = _denoisers(model)
    session = _session(
        checkpoint,
        kernel=kernel,
        variant=variant,
        settings=settings,
        trainable=trainable,
        missing=missing,
        observer=observer,
    )
    from sla_ckpt.attention import binding  # brings in torch.compile, which takes a second

    for module in modules:
        binding.bind(module, session)
    return session


def disable_sla(model: Any) -> None:
    """Undo :func:`enable_sla`. Nothing happens if it is not on.

    Raises:
        UsageError: ``model`` has no denoiser.
    """
    from sla_ckpt.attention import binding

    for module in _denoisers(model):
        binding.unbind(module)


def _session(
    checkpoint: Checkpoint,
    *,
    kernel: str,
    variant: str | None,
    settings: SLASettings | None,
    trainable: bool,
    missing: Missing,
    observer: Observer | None,
) -> SLASession:
    resolved = resolve(checkpoint, variant=variant, settings=settings, missing=missing)
    return SLASession(
        resolved.state,
        variant=resolved.variant,
        kernel=kernel,
        trainable=trainable,
        missing=missing,
        observer=observer,
        label=resolved.label,
    )


def _denoisers(model: Any) -> list[nn.Module]:
    if isinstance(model, nn.Module):
        return [model]
    found = [getattr(model, name, None) for name in DENOISERS]
    modules = [module for module in found if isinstance(module, nn.Module)]
    if not modules:
        raise UsageError(
            f"{type(model).__name__} has no denoiser ({', '.join(DENOISERS)})",
            hint="pass the model itself, as enable_sla(pipe.transformer, ...)",
        )
    return modules
