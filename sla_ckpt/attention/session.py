"""One period of SLA being on: the modules, their parameters and the statistics."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Parameter

from sla_ckpt.attention.module import SparseLinearAttention
from sla_ckpt.attention.routing import dense_reason
from sla_ckpt.attention.scopes import AttentionCall
from sla_ckpt.attention.stats import SLAStats
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState, normalise_dtype

Missing = Literal["error", "zero"]
Observer = Callable[[PairKey, Tensor, Tensor, Tensor], None]


class SLAUnusedWarning(UserWarning):
    """SLA was on and attention ran, but every call was dense."""


class SLASession:
    """SLA for the attention calls of whoever the session serves.

    One module per (head_dim, query dtype) pair serves all layers, as in training. Its parameters
    live on the device where the pair is first met. Calls on another device use the same
    parameters, copied there within the call, so there is one set to train and to save.

    Args:
        state: The projections and settings. ``settings`` must not be None.
        variant: Which SLA made the state, ``"main"`` or ``"sla-1"``.
        kernel: ``"auto"``, ``"triton"``, ``"reference"`` or ``"external"``.
        trainable: Whether the projections require gradients.
        missing: What to do when a call meets a pair the state lacks: raise, or start from zero.
        observer: Called with (pair, q, k, v) before each sparse forward call, not in
            recomputation. Attention that it calls itself is dense.

    Attributes:
        modules: The module of each pair, from the state or met so far.
        stats: What happened to the calls.
        label: How messages name the state.
    """

    def __init__(
        self,
        state: SLAState,
        *,
        variant: str = "main",
        kernel: str = "auto",
        trainable: bool = False,
        missing: Missing = "error",
        observer: Observer | None = None,
        label: str = "the SLA state",
    ) -> None:
        if state.settings is None:
            raise AttentionError(f"{label} has no settings", hint="pass settings=SLASettings(...)")
        self.settings: SLASettings = state.settings
        self.variant = variant
        self.kernel = kernel
        self.trainable = trainable
        self.missing = missing
        self.observer = observer
        self.label = label
        self.stats = SLAStats()
        self.modules: dict[PairKey, SparseLinearAttention] = {}
        self._origin = state.origin
        self._placed: set[PairKey] = set()
        self._shells: dict[tuple[PairKey, torch.device], SparseLinearAttention] = {}
        self._lock = threading.RLock()
        self._closed = False
        self._warned = False
        # Raises now for a kernel or settings that do not exist, even if the state has no pairs.
        self._new_module(PairKey(64, "bf16"))
        for key, projection in state.pairs.items():
            self.modules[key] = self._build(key, projection)

    @property
    def closed(self) -> bool:
        """Whether the session has ended. Recomputation of its forwards still works."""
        return self._closed

    def close(self) -> None:
        """End the session. Modules, parameters and statistics stay readable."""
        self._closed = True

    def warn_if_unused(self, stacklevel: int = 1) -> None:
        """Warn, once, if attention ran and none of it went to SLA."""
        if self._warned or self.stats.sparse_calls or not self.stats.dense_calls:
            return
        self._warned = True
        warnings.warn(
            f"SLA was on, but no attention call went to it: {self.stats.summary()}",
            SLAUnusedWarning,
            stacklevel=stacklevel + 1,
        )

    def parameters(self) -> Iterator[Parameter]:
        """Weight and bias of every pair, in the order of the pairs."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """As :meth:`parameters`, named ``128:bf16/proj_l.weight``."""
        for key in sorted(self.modules):
            for name, parameter in self.modules[key].named_parameters():
                yield f"{key}/{name}", parameter

    def materialise(self, keys: Iterable[PairKey]) -> None:
        """Make the modules of these pairs now, from zero where the state has none."""
        with self._lock:
            for key in keys:
                if key not in self.modules:
                    self.modules[key] = self._build(key, ProjectionTensors.zeros(key.head_dim))

    def to_state(self) -> SLAState:
        """The current projections of all pairs, with the settings and origin of the start."""
        with self._lock:
            pairs = {key: self.modules[key].projection() for key in sorted(self.modules)}
        return SLAState(pairs, self.settings, origin=self._origin)

    def attend(self, call: AttentionCall) -> Tensor:
        """Answer one attention call.

        Raises:
            AttentionError: The pair is missing from the state, or the kernel cannot run it.
        """
        reason = dense_reason(
            call.query,
            call.key,
            call.value,
            call.attn_mask,
            call.dropout_p,
            call.is_causal,
            call.enable_gqa,
        )
        if reason is not None:
            self.stats.count_dense(reason, recompute=call.recompute)
            return call.dense()
        key = PairKey(call.query.shape[-1], normalise_dtype(str(call.query.dtype)))
        device = call.query.device
        module = self._module(key, device)
        if self.observer is not None and not call.recompute:
            self.observer(key, call.query, call.key, call.value)
        self.stats.count_sparse(key, recompute=call.recompute)
        if module.proj_l.weight.device == device:
            output: Tensor = module(call.query, call.key, call.value)
            return output
        return self._attend_elsewhere(key, module, call, device)

    def _module(self, key: PairKey, device: torch.device) -> SparseLinearAttention:
        with self._lock:
            if key not in self.modules and self.missing == "error":
                raise self._missing_pair(key)
            self.materialise([key])
            module = self.modules[key]
            if key not in self._placed:
                # Parameters made inside inference mode could never be trained.
                with torch.inference_mode(False):
                    module.to(device)
                self._placed.add(key)
            return module

    def _missing_pair(self, key: PairKey) -> AttentionError:
        present = ", ".join(str(other) for other in sorted(self.modules)) or "none"
        if any(other.head_dim == key.head_dim for other in self.modules):
            advice = f"run the model in the dtype of the state, or regenerate the pair {key}"
        else:
            advice = (
                "if the call comes from a VAE or text encoder, use enable_sla(pipe, ...), which "
                f"leaves these alone; else regenerate the pair {key}"
            )
        return AttentionError(
            f"{self.label} has no pair {key} (it has: {present})",
            hint=f"{advice} with: sla-ckpt regen",
        )

    def _attend_elsewhere(
        self, key: PairKey, module: SparseLinearAttention, call: AttentionCall, device: torch.device
    ) -> Tensor:
        parameters = {name: value.to(device) for name, value in module.named_parameters()}
        # functional_call swaps the shell's parameters while it runs: one thread at a time.
        with self._lock:
            shell = self._shells.get((key, device))
            if shell is None:
                with torch.inference_mode(False):
                    shell = self._new_module(key).to(device).requires_grad_(False)
                self._shells[key, device] = shell
            output: Tensor = functional_call(
                shell, parameters, (call.query, call.key, call.value), strict=True
            )
        return output

    def _build(self, key: PairKey, projection: ProjectionTensors) -> SparseLinearAttention:
        with torch.inference_mode(False):
            module = self._new_module(key)
            module.load_projection(projection.as_float32())
            return module.requires_grad_(self.trainable)

    def _new_module(self, key: PairKey) -> SparseLinearAttention:
        # Not on whatever default device the caller has set (it may be meta).
        with torch.device("cpu"):
            return SparseLinearAttention.from_settings(
                key.head_dim, self.settings, variant=self.variant, kernel=self.kernel
            )
