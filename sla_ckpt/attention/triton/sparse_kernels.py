"""The block-sparse attention kernels: forward with the linear branch at its end, and gradients.

Every kernel has an outer tile (the rows it owns) and walks inner tiles: TILE_IN rows of a listed
block of the other side. Softmax runs in base 2.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl

from sla_ckpt.attention.triton.tiles import (
    feature,
    linear_weights,
    load_square,
    load_tile,
    store_tile,
)


@triton.jit
def inner_rows(LIST, step, BLOCK: tl.constexpr, TILE_IN: tl.constexpr):
    """Token indices of inner tile number ``step`` of the listed blocks."""
    parts: tl.constexpr = BLOCK // TILE_IN
    block = tl.load(LIST + step // parts)
    return block * BLOCK + (step % parts) * TILE_IN + tl.arange(0, TILE_IN)


@triton.jit
def gather_tile(
    base, stride, rows, limit, cols, D: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr
):
    """As load_tile, with 64-bit offsets where a head's tokens span 2**31 elements or more."""
    if WIDE:
        rows = rows.to(tl.int64)
    return load_tile(base, stride, rows, limit, cols, D, EVEN)


@triton.jit
def forward_kernel(
    Q,
    K,
    V,
    OUT,
    O_SPARSE,
    LSE,
    LUT,
    K_SUM,
    FOLDED,
    BIAS,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    o_stride_b,
    o_stride_h,
    o_stride_l,
    H,
    LQ,
    LK,
    NQ,
    KEPT,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
    TILE_IN: tl.constexpr,
    FEATURE: tl.constexpr,
    LINEAR: tl.constexpr,
    SAVE: tl.constexpr,
    EVEN_Q: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
    EPS: tl.constexpr,
):
    """One tile of queries. Grid: (query tiles, B * H)."""
    tile, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    start = tile.to(tl.int64) * TILE
    length = LQ - tile * TILE
    rows = tl.arange(0, TILE)
    cols = tl.arange(0, DP)
    q_base = Q + b * q_stride_b + h * q_stride_h + start * q_stride_l
    k_base = K + b * k_stride_b + h * k_stride_h
    v_base = V + b * v_stride_b + h * v_stride_h
    lut = LUT + (bh.to(tl.int64) * NQ + tile * TILE // BLOCK_Q) * KEPT

    q = load_tile(q_base, q_stride_l, rows, length, cols, D, EVEN_Q)
    acc = tl.zeros([TILE, DP], tl.float32)
    m = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for step in range(tl.cdiv(KEPT * BLOCK_K, TILE_IN)):
        keys = inner_rows(lut, step, BLOCK_K, TILE_IN)
        k = gather_tile(k_base, k_stride_l, keys, LK, cols, D, EVEN_K, WIDE)
        v = gather_tile(v_base, v_stride_l, keys, LK, cols, D, EVEN_K, WIDE)
        s = tl.dot(q, tl.trans(k))
        if not EVEN_K:
            s = tl.where(keys[None, :] < LK, s, float("-inf"))
        # The scale is positive, so it can wait until it fuses with the subtraction.
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        total = total * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc)
        m = m_new
    out = acc / total[:, None]

    offsets = b * o_stride_b + h * o_stride_h + start * o_stride_l
    offsets += rows[:, None] * o_stride_l + cols[None, :]
    inside = (rows[:, None] < length) & (cols[None, :] < D)
    if SAVE:
        lse = m + tl.log2(total)
        tl.store(LSE + bh.to(tl.int64) * LQ + start + rows, lse, mask=rows < length)
    if LINEAR:
        if SAVE:
            tl.store(O_SPARSE + offsets, out.to(O_SPARSE.dtype.element_ty), mask=inside)
        k_sum = tl.load(K_SUM + bh.to(tl.int64) * D + cols, mask=cols < D, other=0.0)
        folded = load_square(FOLDED + bh.to(tl.int64) * D * D, cols, D)
        phi = feature(q.to(tl.float32), cols, D, FEATURE)
        p, _ = linear_weights(phi, k_sum, EPS)
        out = tl.dot(p.to(q.dtype), folded, out)
        out += tl.load(BIAS + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
    tl.store(OUT + offsets, out.to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def query_grad_kernel(
    Q,
    K,
    V,
    G,
    DQ,
    LSE,
    DELTA,
    LUT,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    g_stride_b,
    g_stride_h,
    g_stride_l,
    dq_stride_b,
    dq_stride_h,
    dq_stride_l,
    H,
    LQ,
    LK,
    NQ,
    KEPT,
    scale,
    softmax_scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
    TILE_IN: tl.constexpr,
    LINEAR: tl.constexpr,
    EVEN_Q: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient of one tile of queries, added to the linear branch's. Grid: (query tiles, B * H)."""
    tile, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    start = tile.to(tl.int64) * TILE
    length = LQ - tile * TILE
    rows = tl.arange(0, TILE)
    cols = tl.arange(0, DP)
    q_base = Q + b * q_stride_b + h * q_stride_h + start * q_stride_l
    g_base = G + b * g_stride_b + h * g_stride_h + start * g_stride_l
    k_base = K + b * k_stride_b + h * k_stride_h
    v_base = V + b * v_stride_b + h * v_stride_h
    lut = LUT + (bh.to(tl.int64) * NQ + tile * TILE // BLOCK_Q) * KEPT

    q = load_tile(q_base, q_stride_l, rows, length, cols, D, EVEN_Q)
    g = load_tile(g_base, g_stride_l, rows, length, cols, D, EVEN_Q)
    row_index = bh.to(tl.int64) * LQ + start + rows
    lse = tl.load(LSE + row_index, mask=rows < length, other=0.0)
    delta = tl.load(DELTA + row_index, mask=rows < length, other=0.0)
    out = DQ + b * dq_stride_b + h * dq_stride_h + start * dq_stride_l
    if LINEAR:
        linear = load_tile(out, dq_stride_l, rows, length, cols, D, EVEN_Q)
        acc = linear.to(tl.float32) / softmax_scale
    else:
        acc = tl.zeros([TILE, DP], tl.float32)
    for step in range(tl.cdiv(KEPT * BLOCK_K, TILE_IN)):
        keys = inner_rows(lut, step, BLOCK_K, TILE_IN)
        k = gather_tile(k_base, k_stride_l, keys, LK, cols, D, EVEN_K, WIDE)
        v = gather_tile(v_base, v_stride_l, keys, LK, cols, D, EVEN_K, WIDE)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * scale - lse[:, None])
        if not EVEN_K:
            p = tl.where(keys[None, :] < LK, p, 0.0)
        d_s = p * (tl.dot(g, tl.trans(v)) - delta[:, None])
        acc = tl.dot(d_s.to(k.dtype), k, acc)
    store_tile(out, dq_stride_l, rows, length, cols, D, acc * softmax_scale)


@triton.jit
def key_grad_kernel(
    Q,
    K,
    V,
    G,
    DK,
    DV,
    LSE,
    DELTA,
    LIST,
    COUNT,
    q_stride_b,
    q_stride_h,
    q_stride_l,
    k_stride_b,
    k_stride_h,
    k_stride_l,
    v_stride_b,
    v_stride_h,
    v_stride_l,
    g_stride_b,
    g_stride_h,
    g_stride_l,
    dk_stride_b,
    dk_stride_h,
    dk_stride_l,
    dv_stride_b,
    dv_stride_h,
    dv_stride_l,
    H,
    LQ,
    LK,
    NQ,
    NK,
    scale,
    softmax_scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
    TILE_IN: tl.constexpr,
    LINEAR: tl.constexpr,
    EVEN_Q: tl.constexpr,
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients of one tile of keys and values, on top of the linear branch's.

    Grid: (key tiles, B * H).

    Walks only the query blocks that keep this key block. Queries past the end read as zero and so
    do their g, lse and delta, which makes their contributions vanish without a mask.
    """
    tile, bh = tl.program_id(0), tl.program_id(1)
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    start = tile.to(tl.int64) * TILE
    length = LK - tile * TILE
    rows = tl.arange(0, TILE)
    cols = tl.arange(0, DP)
    k_base = K + b * k_stride_b + h * k_stride_h + start * k_stride_l
    v_base = V + b * v_stride_b + h * v_stride_h + start * v_stride_l
    q_base = Q + b * q_stride_b + h * q_stride_h
    g_base = G + b * g_stride_b + h * g_stride_h
    block = bh.to(tl.int64) * NK + tile * TILE // BLOCK_K
    count = tl.load(COUNT + block)

    k = load_tile(k_base, k_stride_l, rows, length, cols, D, EVEN_K)
    v = load_tile(v_base, v_stride_l, rows, length, cols, D, EVEN_K)
    dk_out = DK + b * dk_stride_b + h * dk_stride_h + start * dk_stride_l
    dv_out = DV + b * dv_stride_b + h * dv_stride_h + start * dv_stride_l
    if LINEAR:
        linear_k = load_tile(dk_out, dk_stride_l, rows, length, cols, D, EVEN_K)
        linear_v = load_tile(dv_out, dv_stride_l, rows, length, cols, D, EVEN_K)
        d_k = linear_k.to(tl.float32) / softmax_scale
        d_v = linear_v.to(tl.float32)
    else:
        d_k = tl.zeros([TILE, DP], tl.float32)
        d_v = tl.zeros([TILE, DP], tl.float32)
    for step in range(tl.cdiv(count * BLOCK_Q, TILE_IN)):
        queries = inner_rows(LIST + block * NQ, step, BLOCK_Q, TILE_IN)
        q = gather_tile(q_base, q_stride_l, queries, LQ, cols, D, EVEN_Q, WIDE)
        g = gather_tile(g_base, g_stride_l, queries, LQ, cols, D, EVEN_Q, WIDE)
        row_index = bh.to(tl.int64) * LQ + queries
        if EVEN_Q:
            lse = tl.load(LSE + row_index)
            delta = tl.load(DELTA + row_index)
        else:
            lse = tl.load(LSE + row_index, mask=queries < LQ, other=0.0)
            delta = tl.load(DELTA + row_index, mask=queries < LQ, other=0.0)
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - lse[None, :])
        d_v = tl.dot(p.to(g.dtype), g, d_v)
        d_s = p * (tl.dot(v, tl.trans(g)) - delta[None, :])
        d_k = tl.dot(d_s.to(q.dtype), q, d_k)
    store_tile(dk_out, dk_stride_l, rows, length, cols, D, d_k * softmax_scale)
    store_tile(dv_out, dv_stride_l, rows, length, cols, D, d_v)
