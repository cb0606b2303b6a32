"""Device functions the kernels share: tile loads and the feature maps with their derivatives."""
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import triton
import triton.language as tl

#: Feature maps as kernel constants.
FEATURE_CODES = {"softmax": 0, "elu": 1, "relu": 2}


@triton.jit
def load_tile(base, stride, rows, limit, cols, D: tl.constexpr, EVEN: tl.constexpr):
    """Rows of a token-major tensor as ``[rows, DP]``; what lies outside reads as zero."""
    pointers = base + rows[:, None] * stride + cols[None, :]
    if EVEN and cols.shape[0] == D:
        tile = tl.load(pointers)
    elif EVEN:
        tile = tl.load(pointers, mask=cols[None, :] < D, other=0.0)
    else:
        tile = tl.load(pointers, mask=(rows[:, None] < limit) & (cols[None, :] < D), other=0.0)
    return tile


@triton.jit
def load_columns(base, stride, rows, limit, cols, D: tl.constexpr, WHOLE: tl.constexpr):
    """As load_tile, for some of the columns only; WHOLE when nothing lies outside."""
    pointers = base + rows[:, None] * stride + cols[None, :]
    if WHOLE:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=(rows[:, None] < limit) & (cols[None, :] < D), other=0.0)
    return tile


@triton.jit
def store_tile(base, stride, rows, limit, cols, D: tl.constexpr, tile):
    """Store rows in the tensor's dtype, those inside it."""
    pointers = base + rows[:, None] * stride + cols[None, :]
    inside = (rows[:, None] < limit) & (cols[None, :] < D)
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_square(base, cols, D: tl.constexpr):
    """A ``[D, D]`` row-major matrix, zero-padded to ``[DP, DP]``."""
    pointers = base + cols[:, None] * D + cols[None, :]
    if cols.shape[0] == D:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=(cols[:, None] < D) & (cols[None, :] < D), other=0.0)
    return tile


@triton.jit
def feature(x, cols, D: tl.constexpr, FEATURE: tl.constexpr):
    """Features of float32 rows; padded columns give zero."""
    inside = cols[None, :] < D
    if FEATURE == 0:
        x = tl.where(inside, x, float("-inf"))
        e = tl.exp(x - tl.max(x, 1)[:, None])
        phi = e / tl.sum(e, 1)[:, None]
    elif FEATURE == 1:
        phi = tl.where(inside, tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0))), 0.0)
    else:
        phi = tl.maximum(x, 0.0)
    return phi


@triton.jit
def feature_backward(x, phi, d_phi, FEATURE: tl.constexpr):
    """Gradient of the rows from the gradient of their features."""
    if FEATURE == 0:
        d_x = phi * (d_phi - tl.sum(phi * d_phi, 1)[:, None])
    elif FEATURE == 1:
        d_x = d_phi * tl.where(x > 0, 1.0, phi)
    else:
        d_x = tl.where(x > 0, d_phi, 0.0)
    return d_x


@triton.jit
def linear_weights(phi, k_sum, EPS: tl.constexpr):
    """Weights p of the linear branch, in [0, 1], and their denominator; o_l = p · (KV / k_sum)."""
    weighted = phi * k_sum[None, :]
    denominator = EPS + tl.sum(weighted, 1)
    return weighted / denominator[:, None], denominator
