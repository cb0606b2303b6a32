"""The SLA operator: reference, Triton kernels, thu-ml's package, and putting it into a model."""

from sla_ckpt.attention.kernels import available_kernels, resolve_kernel
from sla_ckpt.attention.module import SparseLinearAttention

__all__ = ["SparseLinearAttention", "available_kernels", "resolve_kernel"]
