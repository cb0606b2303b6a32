"""The reference against independent float64 computations, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sla_ckpt.attention.reference import (
    block_map,
    feature,
    kept_blocks,
    linear_branch,
    sla_reference,
    sparse_and_linear_reference,
)
from sla_ckpt.errors import AttentionError

FEATURES = {
    "softmax": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    "elu": lambda x: torch.where(x > 0, x + 1, x.exp()),
    "relu": lambda x: x.clamp_min(0),
}


def tensors(*lengths: int, dim: int, heads: int = 2, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths) + dim)
    return [torch.randn(1, heads, n, dim, generator=generator, dtype=dtype) for n in lengths]


def by_hand(q, k, v, weight, bias, blocks, name, blkq, blkk, variant):
    """One query at a time, as the formula reads."""
    out = torch.empty_like(q)
    phi = FEATURES[name]
    for head in range(q.shape[1]):
        for i in range(q.shape[2]):
            row = blocks[0, head, i // blkq]
            kept = torch.tensor([bool(row[j // blkk]) for j in range(k.shape[2])])
            scores = k[0, head, kept] @ q[0, head, i] / q.shape[-1] ** 0.5
            o_s = (scores.exp() / scores.exp().sum()) @ v[0, head, kept]
            over = torch.ones_like(kept) if variant == "main" else ~kept
            weights = phi(k[0, head, over]) @ phi(q[0, head, i])
            o_l = weights @ v[0, head, over] / (1e-5 + weights.sum())
            out[0, head, i] = o_s + weight @ o_l + bias
    return out


@pytest.mark.parametrize("variant", ["main", "sla-1"])
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(
    ("queries", "keys", "dim", "blkq", "blkk"),
    [(150, 150, 8, 64, 64), (65, 200, 6, 128, 64), (130, 257, 4, 64, 128)],
    ids=["L150-D8", "L65-Lk200-D6-blkq128", "L130-Lk257-D4-blkk128"],
)
def test_reference_is_the_formula(queries, keys, dim, blkq, blkk, name, variant) -> None:
    q, k, v = tensors(queries, keys, keys, dim=dim)
    weight, bias = torch.randn(dim, dim, dtype=q.dtype), torch.randn(dim, dtype=q.dtype)
    blocks = block_map(q, k, topk=0.5, blkq=blkq, blkk=blkk)
    got = sla_reference(
        q, k, v, weight, bias, topk=0.5, feature_map=name, blkq=blkq, blkk=blkk, variant=variant
    )
    want = by_hand(q, k, v, weight, bias, blocks, name, blkq, blkk, variant)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_block_map_keeps_the_best_pooled_scores() -> None:
    q, k = tensors(100, 330, dim=8)
    got = block_map(q, k, topk=0.4, blkq=64, blkk=64)
    pooled_q = torch.stack([q[:, :, :64].mean(2), q[:, :, 64:].mean(2)], 2)
    centred = k - k.mean(2, keepdim=True)
    starts = range(0, 330, 64)
    pooled_k = torch.stack([centred[:, :, s : s + 64].mean(2) for s in starts], 2)
    scores = pooled_q @ pooled_k.transpose(-1, -2)
    assert got.shape == (1, 2, 2, 6)
    assert (got.sum(-1) == 2).all()
    assert torch.equal(got, scores >= scores.topk(2, -1).values[..., -1:])


@pytest.mark.parametrize(
    ("blocks", "topk", "kept"), [(4, 0.2, 1), (5, 0.2, 1), (10, 0.2, 2), (7, 1.0, 7), (1, 0.01, 1)]
)
def test_at_least_one_block_is_kept(blocks: int, topk: float, kept: int) -> None:
    assert kept_blocks(blocks, topk) == kept
    q = tensors(blocks * 64, dim=4)[0]
    assert (block_map(q, q, topk=topk, blkq=64, blkk=64).sum(-1) == kept).all()


def test_small_topk_gives_finite_output() -> None:
    q, k, v = tensors(256, 256, 256, dim=16, dtype=torch.float32)
    o_s, o_l = sparse_and_linear_reference(
        q, k, v, topk=0.2, feature_map="softmax", blkq=64, blkk=64
    )
    assert o_s.isfinite().all() and o_l.isfinite().all()


def test_equal_scores_keep_the_first_blocks() -> None:
    q = torch.zeros(1, 1, 320, 4)
    assert block_map(q, q, topk=0.4, blkq=64, blkk=64)[0, 0, 0].tolist() == [True] * 2 + [False] * 3


def test_everything_kept_is_dense_attention() -> None:
    q, k, v = tensors(100, 140, 140, dim=8)
    o_s, o_l = sparse_and_linear_reference(q, k, v, topk=1.0, feature_map="elu", blkq=64, blkk=64)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(o_s, dense)
    torch.testing.assert_close(o_l, linear_branch(q, k, v, "elu"))


def test_everything_kept_leaves_sla1_without_linear_branch() -> None:
    q, k, v = tensors(100, 100, 100, dim=8)
    options = {"topk": 1.0, "feature_map": "elu", "blkq": 64, "blkk": 64, "variant": "sla-1"}
    _, o_l = sparse_and_linear_reference(q, k, v, **options)
    assert not o_l.any()


@pytest.mark.parametrize("variant", ["main", "sla-1"])
@pytest.mark.parametrize("name", FEATURES)
def test_derivatives(name: str, variant: str) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(70, 135, 135, dim=3, heads=1))
    weight = torch.randn(3, 3, dtype=q.dtype, requires_grad=True)
    bias = torch.randn(3, dtype=q.dtype, requires_grad=True)
    blocks = block_map(q, k, topk=0.5, blkq=64, blkk=64)

    def run(*inputs: Tensor) -> Tensor:
        options = {"feature_map": name, "blkq": 64, "blkk": 64, "variant": variant}
        return sla_reference(*inputs, topk=0.5, blocks=blocks, **options)

    assert torch.autograd.gradcheck(run, (q, k, v, weight, bias), fast_mode=True)


def test_half_precision_is_computed_in_float32() -> None:
    q, k, v = tensors(100, 100, 100, dim=8, dtype=torch.float32)
    weight, bias = torch.randn(8, 8), torch.randn(8)
    options = {"topk": 0.5, "feature_map": "softmax", "blkq": 64, "blkk": 64}
    halves = [x.half() for x in (q, k, v)]
    got = sla_reference(*halves, weight, bias, **options)
    want = sla_reference(*(x.float() for x in halves), weight, bias, **options)
    assert got.dtype == torch.float16
    assert torch.equal(got, want.half())


def test_unknown_feature_map_and_variant_are_named() -> None:
    q = torch.zeros(1, 1, 4, 4)
    with pytest.raises(AttentionError, match="hedgehog"):
        feature(q, "hedgehog")
    with pytest.raises(AttentionError, match="sla-2"):
        sparse_and_linear_reference(
            q, q, q, topk=1.0, feature_map="relu", blkq=64, blkk=64, variant="sla-2"
        )
