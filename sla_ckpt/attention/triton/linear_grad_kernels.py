"""Kernels of the linear branch's gradients; the notation is that of linear_kernels.

Triton 3.6 forgets to wait for a dot inside a run-time branch of a pipelined loop, so there is none.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl

from sla_ckpt.attention.triton.tiles import (
    feature,
    feature_backward,
    linear_weights,
    load_columns,
    load_square,
    load_tile,
    store_tile,
)


@triton.jit
def query_outer_kernel(
    Q,
    G,
    K_SUM,
    A_PARTS,
    D_BIAS_PARTS,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    g_stride_b,
    g_stride_h,
    g_stride_l,
    H,
    L,
    TILES_PER_PART,
    D: tl.constexpr,
    DP: tl.constexpr,
    TILE: tl.constexpr,
    TILE_G: tl.constexpr,
    FEATURE: tl.constexpr,
    EVEN: tl.constexpr,
    EPS: tl.constexpr,
):
    """A = Σ pᵀ g, the gradient of M Wᵀ, and Σ g of one part. Grid: (parts, B * H, D / TILE_G)."""
    part, bh, column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    q_base = Q + b * q_stride_b + h * q_stride_h
    g_base = G + b * g_stride_b + h * g_stride_h
    rows = tl.arange(0, TILE)
    cols = tl.arange(0, DP)
    g_cols = column * TILE_G + tl.arange(0, TILE_G)
    k_sum = tl.load(K_SUM + bh.to(tl.int64) * D + cols, mask=cols < D, other=0.0)
    a = tl.zeros([DP, TILE_G], tl.float32)
    d_bias = tl.zeros([TILE_G], tl.float32)
    first = part * TILES_PER_PART
    for step in range(tl.minimum(TILES_PER_PART, tl.cdiv(L, TILE) - first)):
        tile = first + step
        start = tile.to(tl.int64) * TILE
        length = tl.minimum(L - tile * TILE, TILE)
        q = load_tile(q_base + start * q_stride_l, q_stride_l, rows, length, cols, D, EVEN)
        whole: tl.constexpr = EVEN and D % TILE_G == 0
        g = load_columns(g_base + start * g_stride_l, g_stride_l, rows, length, g_cols, D, whole)
        phi = feature(q.to(tl.float32), cols, D, FEATURE)
        p, _ = linear_weights(phi, k_sum, EPS)
        a = tl.dot(tl.trans(p.to(q.dtype)), g, a)
        d_bias += tl.sum(g.to(tl.float32), 0)
    index = bh.to(tl.int64) * tl.num_programs(0) + part
    out = A_PARTS + index * D * D + cols[:, None] * D + g_cols[None, :]
    tl.store(out, a, mask=(cols[:, None] < D) & (g_cols[None, :] < D))
    tl.store(D_BIAS_PARTS + index * D + g_cols, d_bias, mask=g_cols < D)


@triton.jit
def query_rows_kernel(
    Q,
    G,
    O_SPARSE,
    DQ,
    K_SUM,
    FOLDED,
    DELTA,
    D_K_SUM_PARTS,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    g_stride_b,
    g_stride_h,
    g_stride_l,
    o_stride_b,
    o_stride_h,
    o_stride_l,
    dq_stride_b,
    dq_stride_h,
    dq_stride_l,
    H,
    L,
    TILES_PER_PART,
    D: tl.constexpr,
    DP: tl.constexpr,
    TILE: tl.constexpr,
    FEATURE: tl.constexpr,
    LINEAR: tl.constexpr,
    EVEN: tl.constexpr,
    EPS: tl.constexpr,
):
    """What the backward needs per query. Grid: (parts, B * H).

    DELTA = Σ_d g ∘ o_s; and, for the linear branch, its share of the queries' gradient (left in
    DQ for the sparse kernel to add to) and the gradient of s through p.
    """
    part, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    q_base = Q + b * q_stride_b + h * q_stride_h
    g_base = G + b * g_stride_b + h * g_stride_h
    o_base = O_SPARSE + b * o_stride_b + h * o_stride_h
    rows = tl.arange(0, TILE)
    cols = tl.arange(0, DP)
    if LINEAR:
        k_sum = tl.load(K_SUM + bh.to(tl.int64) * D + cols, mask=cols < D, other=0.0)
        folded = load_square(FOLDED + bh.to(tl.int64) * D * D, cols, D)
        d_k_sum = tl.zeros([DP], tl.float32)
    first = part * TILES_PER_PART
    for step in range(tl.minimum(TILES_PER_PART, tl.cdiv(L, TILE) - first)):
        tile = first + step
        start = tile.to(tl.int64) * TILE
        length = tl.minimum(L - tile * TILE, TILE)
        g = load_tile(g_base + start * g_stride_l, g_stride_l, rows, length, cols, D, EVEN)
        o = load_tile(o_base + start * o_stride_l, o_stride_l, rows, length, cols, D, EVEN)
        delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
        tl.store(DELTA + bh.to(tl.int64) * L + start + rows, delta, mask=rows < length)
        if LINEAR:
            q = load_tile(q_base + start * q_stride_l, q_stride_l, rows, length, cols, D, EVEN)
            x = q.to(tl.float32)
            phi = feature(x, cols, D, FEATURE)
            p, denominator = linear_weights(phi, k_sum, EPS)
            d_p = tl.dot(g, tl.trans(folded))
            d_weighted = (d_p - tl.sum(p * d_p, 1)[:, None]) / denominator[:, None]
            d_k_sum += tl.sum(d_weighted * phi, 0)
            d_q = feature_backward(x, phi, d_weighted * k_sum[None, :], FEATURE)
            out = DQ + b * dq_stride_b + h * dq_stride_h + start * dq_stride_l
            store_tile(out, dq_stride_l, rows, length, cols, D, d_q)
    if LINEAR:
        index = bh.to(tl.int64) * tl.num_programs(0) + part
        tl.store(D_K_SUM_PARTS + index * D + cols, d_k_sum, mask=cols < D)


@triton.jit
def key_rows_kernel(
    K,
    V,
    DK,
    DV,
    K_SUM,
    D_MEANS,
    D_MEANS_SCALE,
    D_K_SUM,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    dk_stride_b,
    dk_stride_h,
    dk_stride_l,
    dv_stride_b,
    dv_stride_h,
    dv_stride_l,
    H,
    L,
    TILES_PER_PART,
    linear_scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    TILE: tl.constexpr,
    FEATURE: tl.constexpr,
    SCALED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The linear branch's share of dk and dv, left for the sparse kernel. Grid: (parts, B * H)."""
    part, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    k_base = K + b * k_stride_b + h * k_stride_h
    v_base = V + b * v_stride_b + h * v_stride_h
    rows = tl.arange(0, TILE)
    cols = tl.arange(0, DP)
    # d_means and φ(k) · linear_scale / s are of order one, in range for float16.
    k_sum = tl.load(K_SUM + bh.to(tl.int64) * D + cols, mask=cols < D, other=0.0)
    d_k_sum = tl.load(D_K_SUM + bh.to(tl.int64) * D + cols, mask=cols < D, other=0.0)
    inverse = linear_scale / tl.where(k_sum > 0, k_sum, float("inf"))
    factor = 1.0 / linear_scale
    if SCALED:
        factor *= tl.load(D_MEANS_SCALE + bh)
    d_means = load_square(D_MEANS + bh.to(tl.int64) * D * D, cols, D)
    first = part * TILES_PER_PART
    for step in range(tl.minimum(TILES_PER_PART, tl.cdiv(L, TILE) - first)):
        tile = first + step
        start = tile.to(tl.int64) * TILE
        length = tl.minimum(L - tile * TILE, TILE)
        k = load_tile(k_base + start * k_stride_l, k_stride_l, rows, length, cols, D, EVEN)
        v = load_tile(v_base + start * v_stride_l, v_stride_l, rows, length, cols, D, EVEN)
        x = k.to(tl.float32)
        phi = feature(x, cols, D, FEATURE)
        d_v = tl.dot((phi * inverse[None, :]).to(v.dtype), d_means) * factor
        dv_out = DV + b * dv_stride_b + h * dv_stride_h + start * dv_stride_l
        store_tile(dv_out, dv_stride_l, rows, length, cols, D, d_v)
        d_phi = tl.dot(v, tl.trans(d_means)) * (inverse * factor)[None, :] + d_k_sum[None, :]
        d_k = feature_backward(x, phi, d_phi, FEATURE)
        dk_out = DK + b * dk_stride_b + h * dk_stride_h + start * dk_stride_l
        store_tile(dk_out, dk_stride_l, rows, length, cols, D, d_k)


@triton.jit
def fold_backward_kernel(
    A_PARTS,
    D_K_SUM_PARTS,
    D_BIAS_PARTS,
    WEIGHT,
    MEANS,
    K_SUM,
    A,
    D_MEANS,
    D_K_SUM,
    D_BIAS,
    PARTS,
    ROW_PARTS,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add the parts up; gradients of M, s and (per head) of the bias. Grid: (D / ROWS, B * H)."""
    bh = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, DP)
    inside = (rows[:, None] < D) & (cols[None, :] < D)
    a = tl.zeros([ROWS, DP], tl.float32)
    d_k_sum = tl.zeros([ROWS], tl.float32)
    d_bias = tl.zeros([ROWS], tl.float32)
    for part in range(PARTS):
        index = bh * PARTS + part
        a += tl.load(
            A_PARTS + index * D * D + rows[:, None] * D + cols[None, :], mask=inside, other=0.0
        )
        d_bias += tl.load(D_BIAS_PARTS + index * D + rows, mask=rows < D, other=0.0)
    for part in range(ROW_PARTS):
        index = bh * ROW_PARTS + part
        d_k_sum += tl.load(D_K_SUM_PARTS + index * D + rows, mask=rows < D, other=0.0)
    tl.store(A + bh * D * D + rows[:, None] * D + cols[None, :], a, mask=inside)
    k_sum = tl.load(K_SUM + bh * D + rows, mask=rows < D, other=0.0)
    inverse = 1.0 / tl.where(k_sum > 0, k_sum, float("inf"))
    for start in range(0, D, CHUNK):
        outs = start + tl.arange(0, CHUNK)
        is_real = (rows[:, None] < D) & (outs[None, :] < D)
        weight = tl.load(
            WEIGHT + cols[:, None] * D + outs[None, :],
            mask=(cols[:, None] < D) & (outs[None, :] < D),
            other=0.0,
        )
        d_means = tl.dot(a, weight, input_precision="tf32x3")
        out = bh * D * D + rows[:, None] * D + outs[None, :]
        means = tl.load(MEANS + out, mask=is_real, other=0.0)
        d_k_sum -= tl.sum(d_means * means, 1) * inverse
        tl.store(D_MEANS + out, d_means.to(D_MEANS.dtype.element_ty), mask=is_real)
    tl.store(D_K_SUM + bh * D + rows, d_k_sum, mask=rows < D)
    tl.store(D_BIAS + bh * D + rows, d_bias, mask=rows < D)
