"""A picture of a state: each projection, its bias and its singular values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sla_ckpt.checks.summary import PairSummary, StateSummary
from sla_ckpt.errors import UsageError
from sla_ckpt.pictures import BLUE, check_picture, new_figure, plain_axes, save_figure
from sla_ckpt.text import count

MAX_PAIRS = 8
#: Inches of a drawn pair, and of one that is all zero.
_TALL, _SHORT = 3.9, 1.0


def plot_state(summary: StateSummary, path: Path) -> None:
    """Draw a state into a picture file.

    Each pair gets a row: the weight as a map (blue negative, red positive, one colour scale per
    pair), the bias as a strip beside it on the same scale, and the singular values on a
    logarithmic axis. A pair that is all zero gets a line that says so.

    Args:
        summary: What to draw; at most eight pairs are drawn.
        path: Target; its suffix chooses the format (.png, .svg, .pdf).

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: Nothing to draw, or a format that is not drawn.
        WriteError: The file cannot be written.
    """
    check_picture(path)
    drawable = [p for p in summary.pairs if p.weight is not None and p.weight.ndim == 2]
    if not drawable:
        raise UsageError(f"{summary.path} holds no projection to draw")
    drawn = drawable[:MAX_PAIRS]
    heights = [_TALL if pair.trained else _SHORT for pair in drawn]
    figure = new_figure(10.5, sum(heights) + 0.5, _title(summary, len(drawable) - len(drawn)))
    rows = figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, pair in zip(rows, drawn, strict=True):
        if pair.trained:
            _draw_pair(row, pair)
        else:
            text = f"{pair.name}: all zero, never trained"
            row.text(0.012, 0.5, text, va="center", fontsize=10)
    save_figure(figure, path)


def _title(summary: StateSummary, hidden: int) -> str:
    settings = summary.settings
    parts = [Path(summary.target).name or summary.target]
    if settings is not None:
        parts.append(
            f"topk {settings.topk:g}, {settings.feature_map}, "
            f"blocks {settings.blkq}×{settings.blkk}"
        )
    if hidden > 0:
        parts.append(f"{count(hidden, 'more pair')} not drawn")
    return " · ".join(parts)


def _draw_pair(row: Any, pair: PairSummary) -> None:
    weight, strip, spectrum = row.subplots(1, 3, width_ratios=(1, 0.06, 1.05))
    limit, image = _draw_weight(weight, pair)
    _draw_bias(strip, pair, limit)
    row.colorbar(image, ax=[weight, strip], shrink=0.9, pad=0.02).ax.tick_params(labelsize=8)
    _draw_singular_values(spectrum, pair)


def _draw_weight(axes: Any, pair: PairSummary) -> tuple[float, Any]:
    assert pair.weight is not None
    values = _finite(pair.weight)
    # The 99.5th percentile keeps one outlier from washing out the rest.
    limit = float(np.percentile(np.abs(values), 99.5)) or float(np.abs(values).max()) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(f"{pair.name} weight", fontsize=10, loc="left")
    axes.set_xlabel("input channel", fontsize=9)
    axes.set_ylabel("output channel", fontsize=9)
    axes.tick_params(labelsize=8)
    return limit, image


def _draw_bias(axes: Any, pair: PairSummary, limit: float) -> None:
    axes.set_title("bias", fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    if pair.bias is None or pair.bias.ndim != 1 or not pair.bias.size:
        axes.text(0.5, 0.5, "none", ha="center", va="center", rotation=90, fontsize=8)
        return
    column = _finite(pair.bias)[:, None]
    axes.imshow(
        column, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )


def _finite(values: Any) -> Any:
    with np.errstate(invalid="ignore"):  # numpy warns of signalling NaN
        doubles = np.real(values).astype(np.float64)
    return np.nan_to_num(doubles, nan=0.0, posinf=0.0, neginf=0.0)


def _draw_singular_values(axes: Any, pair: PairSummary) -> None:
    positive = pair.singular_values[pair.singular_values > 0]
    if not len(positive):
        text = "too large for singular values" if pair.finite else "NaN or Inf"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    rank, size = pair.rank, min(pair.weight_shape or (0,))
    title = f"singular values: rank {rank} of {size}, norm {pair.norm:.4g}"
    plain_axes(axes, title, x="index")
    axes.semilogy(np.arange(1, len(positive) + 1), positive, color=BLUE, linewidth=1.8)
    # Below the numerical rank there is only rounding.
    top = float(positive[0])
    axes.set_ylim(max(float(positive[-1]) * 0.7, top * 1e-9), top * 1.6)
