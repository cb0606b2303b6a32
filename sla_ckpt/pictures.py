"""What ``--plot`` needs in every command: is matplotlib there, one look, and writing the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sla_ckpt.errors import MissingExtraError, UsageError
from sla_ckpt.fsio import atomic_write
from sla_ckpt.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf", "jpg", "jpeg", "webp")
#: Told apart also without colour vision; markers and dashes say the same again.
BLUE, ORANGE, GREY, INK = "#2f4bb8", "#c8650e", "#8a91a0", "#1b2130"


def check_picture(path: Path) -> None:
    """Fail before the long work rather than after it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: The file name asks for a format that is not drawn, or its folder is not there.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("--plot", "plot", "matplotlib")
    if picture_format(path) not in FORMATS:
        raise UsageError(f"--plot cannot write {path.suffix}", hint="use .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: no such folder: {path.parent}", hint="check the path")


def picture_format(path: Path) -> str:
    """The format that a file name asks for; PNG without a suffix."""
    return path.suffix.lstrip(".").lower() or "png"


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure.

    Args:
        width: Inches.
        height: Inches.
        title: Stands above everything, at the left.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # A dollar sign in a folder's name is no formula.
    text = one_line(title, limit=140).replace("$", r"\$")
    figure.suptitle(text, fontsize=11, fontweight="bold", color=INK, x=0.012, ha="left")
    return figure


def plain_axes(axes: Any, title: str, *, x: str, y: str | None = None) -> None:
    """Axes without a frame at the top and right, small labels, a faint grid behind the data."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x, fontsize=9)
    if y is not None:
        axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e3e6ec", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write the picture in one step, in the format of its name.

    Raises:
        WriteError: The file cannot be written; what was there is untouched.
    """
    kind = picture_format(path)
    atomic_write(path, lambda handle: figure.savefig(handle, format=kind, dpi=140))
