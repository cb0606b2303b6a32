"""A picture of a state: each projection and its singular values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sla_ckpt.checks.summary import PairSummary, StateSummary
from sla_ckpt.errors import MissingExtraError, UsageError
from sla_ckpt.fsio import atomic_write

MAX_PAIRS = 8


def plot_state(summary: StateSummary, path: Path) -> None:
    """Draw a state into a picture file.

    Each pair gets a row: the weight as a map (blue negative, red positive, one colour scale per
    pair), the bias below it, and the singular values on a logarithmic axis.

    Args:
        summary: What to draw; at most eight pairs are drawn.
        path: Target; its suffix chooses the format (.png, .svg, .pdf).

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: Nothing to draw, or a format that matplotlib does not write.
        WriteError: The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("--plot", "plot", "matplotlib") from error
    drawn = [p for p in summary.pairs if p.weight is not None and p.weight.ndim == 2][:MAX_PAIRS]
    if not drawn:
        raise UsageError(f"{summary.path} holds no projection to draw")
    figure = Figure(figsize=(9.5, 3.6 * len(drawn) + 0.6), layout="constrained")
    figure.suptitle(_title(summary), fontsize=10)
    axes = figure.subplots(len(drawn), 2, squeeze=False, width_ratios=(1, 1.15))
    for row, pair in zip(axes, drawn, strict=True):
        _draw_weight(figure, row[0], pair)
        _draw_singular_values(row[1], pair)
    suffix = path.suffix.lstrip(".").lower() or "png"
    supported = figure.canvas.get_supported_filetypes()
    if suffix not in supported:
        raise UsageError(f"--plot cannot write .{suffix}", hint="use .png, .svg or .pdf")
    atomic_write(path, lambda handle: figure.savefig(handle, format=suffix, dpi=130))


def _title(summary: StateSummary) -> str:
    settings = summary.settings
    parts = [Path(summary.target).name or summary.target]
    if settings is not None:
        parts.append(
            f"topk {settings.topk:g}, {settings.feature_map}, "
            f"blocks {settings.blkq}×{settings.blkk}"
        )
    return " · ".join(parts)


def _draw_weight(figure: Any, axes: Any, pair: PairSummary) -> None:
    assert pair.weight is not None
    values = np.nan_to_num(pair.weight.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    # The 99.5th percentile keeps one outlier from washing out the rest.
    limit = float(np.percentile(np.abs(values), 99.5)) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.85).ax.tick_params(labelsize=7)
    state = "trained" if pair.trained else "never trained"
    axes.set_title(f"{pair.name} proj_l.weight, {state}", fontsize=9)
    axes.set_xlabel("input channel", fontsize=8)
    axes.set_ylabel("output channel", fontsize=8)
    axes.tick_params(labelsize=7)


def _draw_singular_values(axes: Any, pair: PairSummary) -> None:
    positive = pair.singular_values[pair.singular_values > 0]
    axes.set_title("singular values", fontsize=9)
    axes.set_xlabel("index", fontsize=8)
    axes.tick_params(labelsize=7)
    if not len(positive):
        text = "all zero" if pair.finite else "NaN or Inf"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.semilogy(np.arange(1, len(positive) + 1), positive, color="#1f5fa8", linewidth=1.6)
    axes.grid(True, which="major", alpha=0.3)
    axes.annotate(
        f"rank {pair.rank} of {min(pair.weight_shape or (0,))}, norm {pair.norm:.3g}",
        (0.97, 0.95),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=8,
    )
