"""thu-ml/SLA behind our interface: what it would get wrong never reaches it."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from sla_ckpt.attention import SparseLinearAttention, available_kernels, resolve_kernel
from sla_ckpt.attention import kernels as kernels_module
from sla_ckpt.attention.external import check_external, sla_external
from sla_ckpt.attention.kernels import external_limits
from sla_ckpt.attention.reference import sla_reference
from sla_ckpt.errors import AttentionError
from sla_ckpt.state import SLASettings

INSTALLED = importlib.util.find_spec("sparse_linear_attention") is not None
GOOD = SLASettings(topk=0.2)


def tokens(queries: int, keys: int, dim: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 1, queries, dim), torch.zeros(1, 1, keys, dim)


@pytest.mark.parametrize("dim", [40, 72, 80, 96, 256, 8])
def test_head_dims_it_cannot_compile_are_refused(dim: int) -> None:
    with pytest.raises(AttentionError, match=f"not {dim}"):
        check_external(*tokens(640, 640, dim), GOOD)


def test_block_sizes_it_asserts_on_are_refused() -> None:
    q, k = tokens(640, 640)
    with pytest.raises(AttentionError, match="blkk 64 only, not 128"):
        check_external(q, k, SLASettings(blkk=128))
    with pytest.raises(AttentionError, match="not 32"):
        check_external(q, k, SLASettings(blkq=32))


def test_topk_that_keeps_no_block_is_refused() -> None:
    check_external(*tokens(320, 320), GOOD)
    with pytest.raises(AttentionError, match="4 key blocks keeps none"):
        check_external(*tokens(256, 256), GOOD)


def test_cross_attention_is_refused() -> None:
    with pytest.raises(AttentionError, match="4096 queries and 512 keys"):
        check_external(*tokens(4096, 512), GOOD)


def test_the_sla1_variant_is_refused() -> None:
    assert "sla-1" in (external_limits(64, GOOD, "sla-1") or "")
    assert external_limits(64, GOOD, "main") is None


@pytest.mark.skipif(INSTALLED, reason="the package is installed")
def test_asking_for_it_without_the_package_says_so() -> None:
    with pytest.raises(AttentionError, match="not installed"):
        resolve_kernel("external", device="cuda", dtype=torch.float16, head_dim=64, settings=GOOD)
    assert "not installed" in available_kernels()["external"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name whose module has thu-ml's signature and computes the reference."""

    class Module(nn.Module):
        def __init__(
            self, head_dim, topk, feature_map, BLKQ, BLKK, use_bf16, tie_feature_map_qk
        ) -> None:
            super().__init__()
            self.options = {"topk": topk, "feature_map": feature_map, "blkq": BLKQ, "blkk": BLKK}
            self.proj_l = nn.Linear(head_dim, head_dim)

        def forward(self, q, k, v):
            return sla_reference(q, k, v, self.proj_l.weight, self.proj_l.bias, **self.options)

    package = types.ModuleType("sparse_linear_attention")
    package.SparseLinearAttention = Module
    monkeypatch.setitem(sys.modules, "sparse_linear_attention", package)


def test_the_projection_reaches_it_and_gets_its_gradient(stand_in: None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 330, 32) for _ in range(3))
    weight = torch.randn(32, 32, requires_grad=True)
    bias = torch.randn(32, requires_grad=True)
    out = sla_external(q, k, v, weight, bias, SLASettings(topk=0.4))
    want = sla_reference(q, k, v, weight, bias, **SLASettings(topk=0.4).to_dict())
    assert torch.equal(out, want)
    got = torch.autograd.grad(out.sum(), (weight, bias))
    for a, b in zip(got, torch.autograd.grad(want.sum(), (weight, bias)), strict=True):
        assert torch.equal(a, b)


def test_the_module_runs_it_when_asked(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "_external_refuses", lambda *_: None)
    torch.manual_seed(0)
    module = SparseLinearAttention(32, topk=0.4, kernel="external")
    nn.init.normal_(module.proj_l.weight)
    q, k, v = (torch.randn(1, 2, 330, 32) for _ in range(3))
    reference = SparseLinearAttention(32, topk=0.4, kernel="reference")
    reference.load_state_dict(module.state_dict())
    assert torch.equal(module(q, k, v), reference(q, k, v))
    for a, b in zip(module.branches(q, k, v), reference.branches(q, k, v), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(AttentionError, match="keeps none"):
        module(q[:, :, :64], k[:, :, :64], v[:, :, :64])


@pytest.mark.cuda
@pytest.mark.skipif(
    not (INSTALLED and torch.cuda.is_available()), reason="needs CUDA and thu-ml/SLA"
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")  # by torch, harmless
@pytest.mark.parametrize("blkq", [64, 128])
def test_ours_agrees_with_it(blkq: int, dtype: torch.dtype, tolerance: float) -> None:
    from sparse_linear_attention.utils import get_block_map

    from sla_ckpt.attention.triton.operator import sla_triton

    torch.manual_seed(0)
    q, k, v, g = (torch.randn(1, 4, 2000, 64, device="cuda", dtype=dtype) for _ in range(4))
    weight, bias = torch.randn(64, 64, device="cuda") / 8, torch.randn(64, device="cuda")
    settings = SLASettings(topk=0.1, blkq=blkq)
    # Theirs rounds pooled scores to the compute dtype, which makes ties; take their map.
    blocks = get_block_map(q, k, settings.topk, BLKQ=blkq, BLKK=64)[0].bool()
    results = []
    for run in (sla_external, lambda *x: sla_triton(*x, blocks=blocks)):
        leaves = [x.detach().requires_grad_() for x in (q, k, v, weight, bias)]
        out = run(*leaves, settings)
        results.append([out, *torch.autograd.grad(out, leaves, g)])
    for theirs, ours in zip(*results, strict=True):
        assert (theirs.float() - ours.float()).norm() / theirs.float().norm() < tolerance
