"""A picture of a regeneration: training loss, candidates, attention error per layer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sla_ckpt.errors import MissingExtraError, WriteError
from sla_ckpt.regen.report import RegenResult


def require_matplotlib() -> None:
    """Fail before the long work rather than after it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("--plot", "plot", "matplotlib")


def draw(result: RegenResult, path: Path) -> None:
    """Write the picture; its format follows the file name.

    Raises:
        WriteError: The file cannot be written, or its format is not known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4 * len(result.passes)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(result.passes), 3, squeeze=False)
    for axes, item in zip(rows, result.passes, strict=True):
        losses, candidates, errors = axes
        for name, values in item.train_losses.items():
            losses.plot(range(1, len(values) + 1), values, marker=".", label=name)
        losses.set(title=f"training loss ({item.dtype})", xlabel="evaluation")
        if item.train_losses:
            losses.legend(fontsize=7)
        shown = item.candidates[::-1]
        colours = ["C1" if c.chosen else "C7" if c.present else "C0" for c in shown]
        candidates.barh([c.name for c in shown], [c.loss for c in shown], color=colours)
        low, high = min(c.loss for c in shown), max(c.loss for c in shown)
        margin = 0.1 * (high - low) or 0.01 * abs(high) or 1.0
        candidates.set(title="held-out loss", xlim=(low - margin, high + margin))
        candidates.tick_params(axis="y", labelsize=7)
        for pair in item.pairs:
            layers = range(pair.layers)
            errors.plot(layers, pair.layer_errors_before, "--", label=f"{pair.pair} before")
            errors.plot(layers, pair.layer_errors_after, label=f"{pair.pair} after")
        errors.set(title="attention error against dense", xlabel="layer")
        errors.legend(fontsize=7)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise WriteError(f"cannot draw {path}: {error}", hint="name it .png or .svg") from error
