"""Kernels of the block map: pooling, scores, top-k, and the list of query blocks per key block."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl

from sla_ckpt.attention.triton.tiles import load_tile


@triton.jit
def pool_kernel(
    X,
    POOLED,
    stride_b,
    stride_h,
    stride_l,
    H,
    L,
    N_BLOCKS,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Mean of each block over its real length, float32. Grid: (blocks, B * H)."""
    block, bh = tl.program_id(0), tl.program_id(1)
    base = X + (bh // H).to(tl.int64) * stride_b + (bh % H).to(tl.int64) * stride_h
    base += block.to(tl.int64) * BLOCK * stride_l
    length = tl.minimum(L - block * BLOCK, BLOCK)
    cols = tl.arange(0, DP)
    x = load_tile(base, stride_l, tl.arange(0, BLOCK), length, cols, D, EVEN).to(tl.float32)
    mean = tl.sum(x, 0) / length.to(tl.float32)
    out = POOLED + (bh.to(tl.int64) * N_BLOCKS + block) * D + cols
    tl.store(out, mean, mask=cols < D)


@triton.jit
def score_kernel(
    POOLED_Q,
    POOLED_K,
    SCORES,
    NQ,
    NK,
    D: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Pooled q · pooled kᵀ in float32. Grid: (query tiles, key tiles, B * H).

    Centring k by its mean over the tokens adds the same amount to all scores of a row, so it
    cannot change which blocks are on top; in float32 it is not needed for precision either.
    """
    bh = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    keys = tl.program_id(1) * TILE + tl.arange(0, TILE)
    scores = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, D, CHUNK):
        cols = start + tl.arange(0, CHUNK)
        q = load_tile(POOLED_Q + bh * NQ * D, D, rows, NQ, cols, D, False)
        k = load_tile(POOLED_K + bh * NK * D, D, keys, NK, cols, D, False)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="tf32x3")
    out = SCORES + bh * NQ * NK + rows[:, None].to(tl.int64) * NK + keys[None, :]
    tl.store(out, scores, mask=(rows[:, None] < NQ) & (keys[None, :] < NK))


@triton.jit
def topk_kernel(
    SCORES,
    LUT,
    MASK,
    NQ,
    NK,
    KEPT,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    WITH_MASK: tl.constexpr,
):
    """The KEPT best key blocks of each query block, ascending. Grid: (query blocks / ROWS, B * H).

    Finds the KEPT-th largest score bit by bit on order-preserving integers; among equal scores
    the lower index wins. MASK, if wanted, is int8 ``[B * H, NK, NQ]``.
    """
    bh = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys = tl.arange(0, WIDTH)
    inside = (rows[:, None] < NQ) & (keys[None, :] < NK)
    offsets = bh * NQ * NK + rows[:, None].to(tl.int64) * NK + keys[None, :]
    bits = tl.load(SCORES + offsets, mask=inside, other=0.0).to(tl.int32, bitcast=True)
    # Signed order of `key` is the order of the floats.
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low = tl.full([ROWS], -0x80000000, tl.int32)
    enough = tl.sum((inside & (key >= 0)).to(tl.int32), 1) >= KEPT
    low = tl.where(enough, 0, low)
    for step in range(31):
        candidate = low + (1 << (30 - step))
        reached = tl.sum((inside & (key >= candidate[:, None])).to(tl.int32), 1) >= KEPT
        low = tl.where(reached, candidate, low)
    above = inside & (key > low[:, None])
    equal = inside & (key == low[:, None])
    wanted = KEPT - tl.sum(above.to(tl.int32), 1)
    take = above | (equal & (tl.cumsum(equal.to(tl.int32), 1) <= wanted[:, None]))
    place = tl.cumsum(take.to(tl.int32), 1) - 1
    lut = LUT + (bh * NQ + rows[:, None]) * KEPT + place
    tl.store(lut, tl.broadcast_to(keys[None, :], (ROWS, WIDTH)), mask=take)
    if WITH_MASK:
        mask = MASK + bh * NK * NQ + keys[None, :].to(tl.int64) * NQ + rows[:, None]
        tl.store(mask, take.to(tl.int8), mask=inside)


@triton.jit
def query_list_kernel(MASK, LIST, COUNT, NQ, NK, WIDTH: tl.constexpr):
    """For each key block the query blocks that keep it, ascending. Grid: (key blocks, B * H)."""
    row = tl.program_id(1).to(tl.int64) * NK + tl.program_id(0)
    queries = tl.arange(0, WIDTH)
    taken = tl.load(MASK + row * NQ + queries, mask=queries < NQ, other=0).to(tl.int32)
    place = tl.cumsum(taken, 0) - 1
    tl.store(LIST + row * NQ + place, queries, mask=taken > 0)
    tl.store(COUNT + row, tl.sum(taken, 0))
