"""The SLA operator as a module, state_dict-compatible with thu-ml/SLA and SimpleTuner."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sla_ckpt.attention.kernels import resolve_kernel
from sla_ckpt.attention.reference import (
    linear_branch,
    sla_reference,
    sparse_and_linear_reference,
)
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import SLA_VARIANTS, ProjectionTensors, SLASettings


class SparseLinearAttention(nn.Module):
    """Sparse attention over the best key blocks plus a projected linear branch.

    ``proj_l`` is float32 whatever the queries are, and starts at zero.

    Args:
        head_dim: D, the size of one head.
        topk: Share of key blocks each query block keeps, in (0, 1]; at least one is kept.
        feature_map: ``softmax``, ``elu`` or ``relu``.
        blkq: Query block length in tokens, 64 or 128.
        blkk: Key block length in tokens, 64 or 128.
        tie_feature_map_qk: Same map for queries and keys; the maps have no parameters, so this
            changes nothing and is kept for the settings' sake.
        variant: ``main`` (linear branch over all keys) or ``sla-1`` (over the blocks not kept).
        kernel: ``auto``, ``triton``, ``reference`` or ``external``.

    Raises:
        AttentionError: A setting that no kernel can run.

    Example:
        >>> attention = SparseLinearAttention(64, topk=0.1)
        >>> q = k = v = torch.randn(1, 2, 256, 64)
        >>> attention(q, k, v).shape
        torch.Size([1, 2, 256, 64])
    """

    def __init__(
        self,
        head_dim: int,
        topk: float = 0.2,
        feature_map: str = "softmax",
        blkq: int = 64,
        blkk: int = 64,
        tie_feature_map_qk: bool = True,
        variant: str = "main",
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        if variant not in SLA_VARIANTS:
            raise AttentionError(
                f"SLA variant {variant!r} does not exist",
                hint=f"use one of {', '.join(SLA_VARIANTS)}",
            )
        self.head_dim = head_dim
        self.settings = SLASettings(topk, feature_map, blkq, blkk, tie_feature_map_qk)
        self.variant = variant
        self.kernel = kernel
        # Settings and kernel name are checked now; what depends on the tensors, at each call.
        resolve_kernel(
            "auto" if kernel in ("triton", "external") else kernel,
            device="cpu",
            dtype=torch.float32,
            head_dim=head_dim,
            settings=self.settings,
        )
        self.proj_l = nn.Linear(head_dim, head_dim, dtype=torch.float32)
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)

    @classmethod
    def from_settings(
        cls,
        head_dim: int,
        settings: SLASettings,
        *,
        variant: str = "main",
        kernel: str = "auto",
    ) -> SparseLinearAttention:
        """Build the module that a state's settings describe."""
        return cls(head_dim, **settings.to_dict(), variant=variant, kernel=kernel)

    def extra_repr(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.settings.to_dict().items())
        return f"{self.head_dim}, {values}, variant={self.variant!r}, kernel={self.kernel!r}"

    def load_projection(self, tensors: ProjectionTensors) -> None:
        """Copy a state's projection into ``proj_l``.

        Raises:
            AttentionError: The tensors are not for this head_dim.
        """
        source = tensors.as_float32()
        shapes = (source.weight.shape, source.bias.shape)
        if shapes != ((self.head_dim, self.head_dim), (self.head_dim,)):
            raise AttentionError(
                f"projection of shapes {shapes[0]} and {shapes[1]} does not fit "
                f"head_dim {self.head_dim}",
                hint="run: sla-ckpt verify",
            )
        with torch.no_grad():
            self.proj_l.weight.copy_(torch.from_numpy(source.weight.copy()))
            self.proj_l.bias.copy_(torch.from_numpy(source.bias.copy()))

    def projection(self) -> ProjectionTensors:
        """A copy of ``proj_l`` as plain arrays, for an :class:`~sla_ckpt.state.SLAState`."""
        weight, bias = (
            p.detach().to("cpu", torch.float32, copy=True).numpy()
            for p in (self.proj_l.weight, self.proj_l.bias)
        )
        return ProjectionTensors(weight, bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend.

        Args:
            q: queries of shape ``[B, H, L, D]``.
            k: keys of shape ``[B, H, L_k, D]``.
            v: values of shape ``[B, H, L_k, D]``.

        Returns:
            Output of shape ``[B, H, L, D]`` in the dtype of ``q`` (under autocast, float32 inputs
            are cast to its dtype, as SDPA does).

        Raises:
            AttentionError: Shapes, dtypes or devices do not fit, or the kernel cannot run this.
        """
        q, k, v = self._prepare(q, k, v)
        kernel = self._kernel_for(q)
        weight, bias = self.proj_l.weight, self.proj_l.bias
        if kernel == "triton":
            from sla_ckpt.attention.triton.operator import sla_triton

            return sla_triton(q, k, v, weight, bias, self.settings, variant=self.variant)
        if kernel == "external":
            from sla_ckpt.attention.external import sla_external

            return sla_external(q, k, v, weight, bias, self.settings)
        options = self.settings.to_dict()
        return sla_reference(q, k, v, weight, bias, **options, variant=self.variant)

    def branches(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches before the projection, ``(o_s, o_l)``, each ``[B, H, L, D]``.

        Raises:
            AttentionError: As for :meth:`forward`.
        """
        q, k, v = self._prepare(q, k, v)
        kernel = self._kernel_for(q)
        if kernel == "triton":
            from sla_ckpt.attention.triton.operator import branches_triton

            return branches_triton(q, k, v, self.settings, variant=self.variant)
        if kernel == "external":
            from sla_ckpt.attention.external import sla_external

            weight, bias = (torch.zeros_like(p) for p in self.proj_l.parameters())
            o_s = sla_external(q, k, v, weight, bias, self.settings)
            return o_s, linear_branch(q, k, v, self.settings.feature_map).to(q.dtype)
        options = self.settings.to_dict()
        return sparse_and_linear_reference(q, k, v, **options, variant=self.variant)

    def _prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device = q.device.type
        if torch.is_autocast_enabled(device) and torch.float32 in (q.dtype, k.dtype, v.dtype):
            dtype = torch.get_autocast_dtype(device)
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        check_inputs(q, k, v, self.head_dim)
        if self.proj_l.weight.device != q.device:
            raise AttentionError(
                f"proj_l is on {self.proj_l.weight.device}, the queries on {q.device}",
                hint=f"move the module: module.to({str(q.device)!r})",
            )
        return q, k, v

    def _kernel_for(self, q: Tensor) -> str:
        return resolve_kernel(
            self.kernel,
            device=q.device,
            dtype=q.dtype,
            head_dim=self.head_dim,
            settings=self.settings,
            variant=self.variant,
        )


def check_inputs(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> None:
    """Refuse what no kernel may see.

    Raises:
        AttentionError: Not ``[B, H, L, D]``, sizes that differ, an empty dimension, mixed dtypes
            or devices.
    """
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.dim() == k.dim() == v.dim() == 4:
        raise AttentionError(f"SLA takes [B, H, L, D] tensors, got {shapes}")
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise AttentionError(f"SLA needs the same B, H and D, and as many keys as values: {shapes}")
    if q.shape[3] != head_dim:
        raise AttentionError(f"this SLA module is for head_dim {head_dim}, got {shapes}")
    if 0 in q.shape or 0 in k.shape:
        raise AttentionError(f"SLA needs at least one token: {shapes}")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise AttentionError(f"SLA needs one float dtype: q {q.dtype}, k {k.dtype}, v {v.dtype}")
    if not q.device == k.device == v.device:
        raise AttentionError(
            f"SLA needs one device: q {q.device}, k {k.device}, v {v.device}",
        )
