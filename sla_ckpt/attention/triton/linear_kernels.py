"""Kernels of the linear branch: sums over the keys and the folded projection.

With φ the feature map and s = Σ φ(k), the branch is written as a weighted mean, which stays in
range for float16 at any length:

    p = φ(q) ∘ s / (ε + φ(q) · s),   M = (φ(k)ᵀ v) / s,   o_l = p M,   proj_l(o_l) = p (M Wᵀ) + b

M and M Wᵀ are [D, D] per head, so the projection costs nothing per token.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl

from sla_ckpt.attention.triton.tiles import feature, load_columns, load_tile


@triton.jit
def key_sums_kernel(
    K,
    V,
    POOLED,
    KV_PARTS,
    K_SUM_PARTS,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    H,
    L,
    N_BLOCKS,
    BLOCKS_PER_PART,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_V: tl.constexpr,
    FEATURE: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Block means of k, and Σ φ(k) and φ(k)ᵀ v of one part. Grid: (parts, B * H, D / TILE_V)."""
    part, bh, column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    k_base = K + b * k_stride_b + h * k_stride_h
    v_base = V + b * v_stride_b + h * v_stride_h
    rows = tl.arange(0, BLOCK)
    cols = tl.arange(0, DP)
    v_cols = column * TILE_V + tl.arange(0, TILE_V)
    k_sum = tl.zeros([DP], tl.float32)
    kv = tl.zeros([DP, TILE_V], tl.float32)
    first = part * BLOCKS_PER_PART
    for step in range(tl.minimum(BLOCKS_PER_PART, N_BLOCKS - first)):
        block = first + step
        start = block.to(tl.int64) * BLOCK
        length = tl.minimum(L - block * BLOCK, BLOCK)
        k = load_tile(k_base + start * k_stride_l, k_stride_l, rows, length, cols, D, EVEN)
        whole: tl.constexpr = EVEN and D % TILE_V == 0
        v = load_columns(v_base + start * v_stride_l, v_stride_l, rows, length, v_cols, D, whole)
        x = k.to(tl.float32)
        phi = feature(x, cols, D, FEATURE)
        if not EVEN:
            phi = tl.where(rows[:, None] < length, phi, 0.0)
        k_sum += tl.sum(phi, 0)
        kv = tl.dot(tl.trans(phi.to(k.dtype)), v, kv)
        if column == 0:
            mean = tl.sum(x, 0) / length.to(tl.float32)
            out = POOLED + (bh.to(tl.int64) * N_BLOCKS + block) * D + cols
            tl.store(out, mean, mask=cols < D)
    index = bh.to(tl.int64) * tl.num_programs(0) + part
    out = KV_PARTS + index * D * D + cols[:, None] * D + v_cols[None, :]
    tl.store(out, kv, mask=(cols[:, None] < D) & (v_cols[None, :] < D))
    if column == 0:
        tl.store(K_SUM_PARTS + index * D + cols, k_sum, mask=cols < D)


@triton.jit
def fold_kernel(
    KV_PARTS,
    K_SUM_PARTS,
    WEIGHT,
    MEANS,
    K_SUM,
    FOLDED,
    PARTS,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add the parts up; M = KV / s and M Wᵀ. Grid: (D / ROWS, B * H)."""
    bh = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, DP)
    inside = (rows[:, None] < D) & (cols[None, :] < D)
    kv = tl.zeros([ROWS, DP], tl.float32)
    k_sum = tl.zeros([ROWS], tl.float32)
    for part in range(PARTS):
        index = bh * PARTS + part
        kv += tl.load(
            KV_PARTS + index * D * D + rows[:, None] * D + cols[None, :], mask=inside, other=0.0
        )
        k_sum += tl.load(K_SUM_PARTS + index * D + rows, mask=rows < D, other=0.0)
    # A relu feature that no key has contributes nothing anywhere.
    means = kv * 1.0 / tl.where(k_sum > 0, k_sum, float("inf"))[:, None]
    tl.store(MEANS + bh * D * D + rows[:, None] * D + cols[None, :], means, mask=inside)
    for start in range(0, D, CHUNK):
        outs = start + tl.arange(0, CHUNK)
        weight = load_tile(WEIGHT, D, outs, D, cols, D, False)
        folded = tl.dot(means, tl.trans(weight), input_precision="tf32x3")
        out = FOLDED + bh * D * D + rows[:, None] * D + outs[None, :]
        is_real = (rows[:, None] < D) & (outs[None, :] < D)
        tl.store(out, folded.to(FOLDED.dtype.element_ty), mask=is_real)
    tl.store(K_SUM + bh * D + rows, k_sum, mask=rows < D)
