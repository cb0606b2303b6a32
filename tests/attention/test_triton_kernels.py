"""The Triton kernels against the reference: output and every gradient.

Compiled, in bfloat16 and float16, where there is a CUDA device; else interpreted, in float32 and
float16. Outputs are poisoned with NaN beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sla_ckpt.attention.reference import block_map, sla_reference
from sla_ckpt.attention.triton.backward import query_lists
from sla_ckpt.attention.triton.operator import compute_blocks, sla_triton
from sla_ckpt.attention.triton.problem import problem_for
from sla_ckpt.attention.triton.tuning import Launch, Tuning
from sla_ckpt.state import SLASettings

CUDA = torch.cuda.is_available()
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = [torch.bfloat16, torch.float16] if CUDA else [torch.float32, torch.float16]
NAMES = ("o", "dq", "dk", "dv", "dW", "db")


@dataclass(frozen=True)
class Case:
    batch: int
    heads: int
    queries: int
    dim: int
    keys: int = 0
    feature_map: str = "softmax"
    blkq: int = 64
    blkk: int = 64
    topk: float = 0.4
    variant: str = "main"

    def __str__(self) -> str:
        text = f"B{self.batch}-H{self.heads}-L{self.queries}-D{self.dim}"
        text += f"-Lk{self.keys}" if self.keys else ""
        text += f"-{self.feature_map}-q{self.blkq}k{self.blkk}"
        return text + ("" if self.variant == "main" else f"-{self.variant}")

    @property
    def settings(self) -> SLASettings:
        return SLASettings(self.topk, self.feature_map, self.blkq, self.blkk)

    def inputs(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """q, k, v, weight, bias and the gradient of the output, fresh random values."""
        generator = torch.Generator().manual_seed(crc32(str(self).encode()))
        keys = self.keys or self.queries
        shapes = [(self.batch, self.heads, n, self.dim) for n in (self.queries, keys, keys)]
        q, k, v = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
        weight = torch.randn(self.dim, self.dim, generator=generator) / self.dim**0.5
        bias = torch.randn(self.dim, generator=generator)
        g = torch.randn(shapes[0], generator=generator).to(device, dtype)
        return [q, k, v, weight.to(device), bias.to(device), g]


def run_triton(case: Case, inputs: list[Tensor], blocks: Tensor | None = None, **options):
    *leaves, g = inputs
    leaves = [x.detach().requires_grad_() for x in leaves]
    o = sla_triton(*leaves, case.settings, variant=case.variant, blocks=blocks, **options)
    return [o.detach(), *torch.autograd.grad(o, leaves, g)]


def run_reference(case: Case, inputs: list[Tensor], blocks: Tensor | None = None):
    *leaves, g = (x.detach().double() for x in inputs)
    leaves = [x.requires_grad_() for x in leaves]
    o = sla_reference(*leaves, **case.settings.to_dict(), variant=case.variant, blocks=blocks)
    return [o.detach(), *torch.autograd.grad(o, leaves, g)]


def assert_agree(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    """Relative to the norm; with so few keys that softmax's gradient vanishes, to order one."""
    floor = 1.0 if want[2].shape[2] < 8 else 1e-3
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.isfinite().all(), f"{name} has elements that are not finite"
        scale = max(b.norm().item(), floor * b.numel() ** 0.5)
        error = (a.double() - b).norm().item() / scale
        assert error < tolerance, f"{name}: relative error {error:.1e}"


CASES = [
    Case(1, 2, 319, 72),
    Case(2, 1, 128, 64),
    Case(1, 1, 300, 16, feature_map="elu"),
    Case(1, 2, 200, 40, keys=331, feature_map="relu"),
    Case(1, 1, 331, 32, keys=70, feature_map="elu", blkq=128),
    Case(1, 1, 400, 24, blkq=128, blkk=128, feature_map="relu"),
    Case(1, 1, 150, 80, blkk=128),
    Case(1, 1, 130, 128, topk=1.0),
    Case(1, 1, 1, 96),
    Case(1, 1, 2, 64, keys=1),
    Case(1, 2, 319, 48, feature_map="softmax", variant="sla-1"),
    Case(1, 1, 260, 64, keys=200, feature_map="elu", blkq=128, variant="sla-1"),
]
WIDE_CASES = [Case(1, 1, 200, 160), Case(1, 1, 130, 256, feature_map="elu")]
CUDA_CASES = [
    Case(1, 2, 4096, 128, topk=0.1),
    Case(1, 2, 4000, 128, blkq=128, feature_map="elu", topk=0.1),
    Case(1, 2, 3000, 96, feature_map="relu", topk=0.1),
    Case(1, 2, 1000, 64, blkq=128, feature_map="relu", topk=0.1),
    Case(1, 2, 1500, 160, feature_map="elu", topk=0.1),
    Case(1, 2, 1000, 256, blkq=128, topk=0.1),
    Case(2, 3, 2048, 128, blkq=128, blkk=128, topk=0.1),
    Case(2, 3, 2000, 64, keys=3000, blkk=128, topk=0.1),
    Case(1, 2, 2000, 128, topk=0.1, variant="sla-1"),
]


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", [*CASES, *WIDE_CASES, *(CUDA_CASES if CUDA else [])], ids=str)
def test_agrees_with_reference(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    inputs = case.inputs(dtype, device)
    blocks = block_map(
        inputs[0].double(), inputs[1].double(), topk=case.topk, blkq=case.blkq, blkk=case.blkk
    )
    got = run_triton(case, inputs)
    assert_agree(got, run_reference(case, inputs, blocks), TOLERANCE[dtype])


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 2, 700, 16, topk=0.3),
        Case(1, 1, 500, 16, keys=900, blkq=128, topk=0.2),
        Case(2, 1, 640, 8, keys=640, blkk=128, topk=0.5),
        Case(1, 1, 64, 16, keys=2000, topk=0.1),
        Case(1, 1, 200, 16, keys=64 * 150, topk=0.1),
    ],
    ids=str,
)
def test_block_map_is_the_references(case: Case, device: torch.device) -> None:
    q, k = (x.double() for x in case.inputs(DTYPES[0], device)[:2])
    want = block_map(q, k, topk=case.topk, blkq=case.blkq, blkk=case.blkk)
    lists = compute_blocks(q.to(DTYPES[0]), k.to(DTYPES[0]), case.settings)
    assert torch.equal(lists.mask.bool().transpose(1, 2), want.flatten(0, 1))
    again = torch.zeros_like(want.flatten(0, 1)).scatter_(-1, lists.lut.long(), True)
    assert torch.equal(again, want.flatten(0, 1))
    assert (lists.lut.diff(dim=-1) > 0).all()


def test_equal_scores_keep_the_first_blocks(device: torch.device) -> None:
    q = torch.zeros(1, 1, 320, 16, device=device, dtype=DTYPES[0])
    lists = compute_blocks(q, q, SLASettings(topk=0.4))
    assert lists.lut.tolist() == [[[0, 1]] * 5]


@pytest.mark.usefixtures("poisoned_empty")
def test_query_lists_are_the_transposed_map(device: torch.device) -> None:
    case = Case(1, 2, 700, 16, keys=450, topk=0.3)
    q, k = case.inputs(DTYPES[0], device)[:2]
    problem = problem_for(q, k, case.settings, None)
    mask = compute_blocks(q, k, case.settings).mask
    lists, counts = query_lists(problem, mask)
    for plane in range(2):
        for block in range(problem.key_blocks):
            want = mask[plane, block].nonzero().flatten().tolist()
            assert lists[plane, block, : counts[plane, block]].tolist() == want


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(Launch(64, 32, 4, 2), Launch(64, 32, 4, 2), Launch(32, 32, 4, 2)),
        Tuning(Launch(128, 64, 8, 2), Launch(128, 64, 8, 2), Launch(64, 128, 8, 1)),
    ],
    ids=["smaller", "whole"],
)
def test_tiles_may_differ_from_blocks(
    tuning: Tuning, dtype: torch.dtype, device: torch.device
) -> None:
    case = Case(1, 1, 330, 64, blkq=128, topk=0.6)
    inputs = case.inputs(dtype, device)
    got = run_triton(case, inputs, tuning=tuning)
    assert_agree(got, run_reference(case, inputs), TOLERANCE[dtype])


@pytest.mark.usefixtures("poisoned_empty")
@settings(
    max_examples=6 if CUDA else 12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    queries=st.integers(1, 300),
    keys=st.integers(1, 300),
    dim=st.sampled_from([16, 24, 40, 64]),
    name=st.sampled_from(["softmax", "elu", "relu"]),
    blkq=st.sampled_from([64, 128]),
    blkk=st.sampled_from([64, 128]),
    topk=st.floats(0.01, 1.0),
    variant=st.sampled_from(["main", "main", "sla-1"]),
)
def test_any_shape_agrees(
    batch, heads, queries, keys, dim, name, blkq, blkk, topk, variant, device
) -> None:
    case = Case(batch, heads, queries, dim, keys, name, blkq, blkk, topk, variant)
    inputs = case.inputs(DTYPES[0], device)
    q, k = inputs[0].double(), inputs[1].double()
    # The reference's map: in float32 two blocks may tie that do not in float64.
    blocks = block_map(q, k, topk=topk, blkq=blkq, blkk=blkk)
    got = run_triton(case, inputs, blocks)
    assert_agree(got, run_reference(case, inputs, blocks), 2 * TOLERANCE[DTYPES[0]])


@pytest.mark.parametrize("variant", ["main", "sla-1"])
def test_token_major_views_need_no_copy(variant: str, device: torch.device) -> None:
    case = Case(2, 2, 150, 32, variant=variant)
    inputs = case.inputs(DTYPES[0], device)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:3]]
    strided = run_triton(case, [*views, *inputs[3:]])
    plain = run_triton(case, inputs)
    for a, b in zip(strided, plain, strict=True):
        assert torch.equal(a, b)
    if variant == "main":
        assert strided[0].stride() == views[0].stride()
        assert strided[1].stride() == views[0].stride()


def test_slices_of_a_packed_projection(device: torch.device) -> None:
    case = Case(1, 2, 150, 32)
    inputs = case.inputs(DTYPES[0], device)
    packed = torch.stack(inputs[:3], 3).permute(0, 2, 3, 1, 4).contiguous()
    views = [x.transpose(1, 2) for x in packed.unbind(2)]
    assert not views[0].is_contiguous()
    for a, b in zip(run_triton(case, [*views, *inputs[3:]]), run_triton(case, inputs), strict=True):
        assert torch.equal(a, b)


def test_expanded_gradient(device: torch.device) -> None:
    case = Case(1, 1, 100, 32)
    *leaves, _ = case.inputs(DTYPES[0], device)
    leaves = [x.requires_grad_() for x in leaves]
    sla_triton(*leaves, case.settings).sum().backward()
    want = run_reference(case, [*leaves, torch.ones_like(leaves[0])])
    assert_agree([want[0], *(x.grad for x in leaves)], want, TOLERANCE[DTYPES[0]])


def test_forward_and_backward_are_deterministic(device: torch.device) -> None:
    case = Case(1, 2, 500 if CUDA else 200, 64)
    inputs = case.inputs(DTYPES[0], device)
    first, second = run_triton(case, inputs), run_triton(case, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_gradients_the_output_is_the_same(device: torch.device) -> None:
    case = Case(1, 1, 200, 64)
    inputs = case.inputs(DTYPES[0], device)
    with torch.no_grad():
        o = sla_triton(*inputs[:5], case.settings)
    assert torch.equal(o, run_triton(case, inputs)[0])


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 4], ids=["q", "k", "v", "weight", "bias"])
def test_one_gradient_alone(wanted: int, device: torch.device) -> None:
    case = Case(1, 1, 100, 32)
    inputs = case.inputs(DTYPES[0], device)
    leaves = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(inputs[:5])]
    o = sla_triton(*leaves, case.settings)
    (got,) = torch.autograd.grad(o, leaves[wanted], inputs[5])
    assert torch.equal(got, run_triton(case, inputs)[1 + wanted])


def test_projection_gradients_are_float32(device: torch.device) -> None:
    case = Case(1, 1, 100, 32)
    got = run_triton(case, case.inputs(torch.float16, device))
    assert [x.dtype for x in got] == [torch.float16] * 4 + [torch.float32] * 2


def test_large_loss_scale_stays_finite_in_float16(device: torch.device) -> None:
    case = Case(1, 1, 1000, 16, topk=0.1)
    inputs = case.inputs(torch.float16, device)
    inputs[5] = inputs[5].abs() * 1000
    assert_agree(run_triton(case, inputs), run_reference(case, inputs), 2e-3)


def test_keys_with_a_common_offset_do_not_change_the_map(device: torch.device) -> None:
    case = Case(1, 1, 500, 16)
    q, k = (x.float() for x in case.inputs(torch.float32, device)[:2])
    shifted = (k + 50).to(torch.float32)
    settings_ = case.settings
    if CUDA:
        shifted, q = shifted.to(torch.float16), q.to(torch.float16)
    want = block_map(q.double(), shifted.double(), topk=case.topk, blkq=64, blkk=64)
    got = compute_blocks(q, shifted, settings_).mask
    assert torch.equal(got.bool().transpose(1, 2), want.flatten(0, 1))
