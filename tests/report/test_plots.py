"""``--plot`` of inspect and regen: pictures show the numbers; what is wrong is said early."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sla_ckpt import SLAState
from sla_ckpt.checks.context import Context
from sla_ckpt.checks.plot import plot_state
from sla_ckpt.checks.summary import StateSummary, summarise
from sla_ckpt.checks.verify import open_target
from sla_ckpt.cli.main import run
from sla_ckpt.errors import MissingExtraError, UsageError
from sla_ckpt.pictures import check_picture
from sla_ckpt.regen.plot import draw
from sla_ckpt.regen.report import CandidateResult, PairResult, PassResult, RegenResult
from sla_ckpt.state import PairKey, ProjectionTensors
from tests import factories
from tests.report import runs


def summary_of(folder: Path, state: SLAState) -> StateSummary:
    factories.write_full_checkpoint(folder, state)
    return summarise(Context(open_target(folder)[0]))


def pixels(path: Path) -> NDArray[np.int16]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def columns_where(picture: NDArray[np.int16], channel: int, other: int) -> NDArray[np.intp]:
    """The x of every pixel that is clearly more of one colour than of the other."""
    found = np.nonzero(picture[..., channel] - picture[..., other] > 60)[1]
    return found[found < 0.36 * picture.shape[1]]  # the weight map, without its colour bar


def test_negative_weights_are_blue_and_positive_ones_red(tmp_path: Path) -> None:
    weight = np.full((128, 128), -1.0, np.float32)
    weight[:, 64:] = 1.0
    state = SLAState({runs.PAIR: ProjectionTensors(weight, np.zeros(128, np.float32))})
    plot_state(summary_of(tmp_path / "c", state), tmp_path / "state.png")
    picture = pixels(tmp_path / "state.png")
    red, blue = columns_where(picture, 0, 2), columns_where(picture, 2, 0)
    assert len(red) > 10_000 and len(blue) > 10_000
    assert blue.max() < red.min()


def test_many_pairs_zeros_and_nan_all_fit_into_one_picture(tmp_path: Path) -> None:
    nan = runs.with_nan(runs.trained(1.0)).pairs[runs.PAIR]
    pairs = {PairKey(dim, "bf16"): factories.projection(dim) for dim in (8, 16, 32, 64)}
    pairs |= {PairKey(dim, "fp16"): ProjectionTensors.zeros(dim) for dim in (16, 32, 64, 96, 128)}
    state = SLAState({runs.PAIR: nan, **pairs})
    plot_state(summary_of(tmp_path / "c$x^2$", state), tmp_path / "state.png")
    tall = pixels(tmp_path / "state.png").shape[0]
    plot_state(summary_of(tmp_path / "one", runs.trained(1.0)), tmp_path / "one.png")
    # Five drawn and three short rows; the ninth and tenth pair are only counted.
    assert 4 < tall / pixels(tmp_path / "one.png").shape[0] < 7


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".jpg", ".webp", ""])
def test_every_format_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"state{suffix}"
    plot_state(summary_of(tmp_path / "c", factories.state("8:bf16")), path)
    starts = {".svg": b"<?xml", ".pdf": b"%PDF", ".jpg": b"\xff\xd8", ".webp": b"RIFF"}
    assert path.read_bytes().startswith(starts.get(suffix, b"\x89PNG"))


def test_what_cannot_be_drawn_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"cannot write \.docx"):
        check_picture(tmp_path / "x.docx")
    with pytest.raises(UsageError, match="no such folder"):
        check_picture(tmp_path / "no" / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib") as caught:
        check_picture(tmp_path / "x.png")
    assert caught.value.hint == "run: pip install 'sla-ckpt[plot]'"


@pytest.mark.parametrize("command", ["inspect", "regen"])
@pytest.mark.parametrize(
    ("plot", "message"), [("x.docx", "cannot write .docx"), ("no/x.png", "no such folder")]
)
def test_a_picture_that_cannot_be_written_stops_the_command_before_its_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, plot: str, message: str
) -> None:
    # The checkpoint does not exist: a command that began its work would say that.
    with pytest.raises(SystemExit) as caught:
        run([command, str(tmp_path / "gone"), "--plot", str(tmp_path / plot)])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith("error: --plot") and message in err


def candidate(number: int, *, present: bool = False, chosen: bool = False) -> CandidateResult:
    return CandidateResult(f"trained, step {number}", 0.01 * (number + 1), present, chosen)


def result(passes: tuple[PassResult, ...], checkpoint: Path) -> RegenResult:
    return RegenResult(
        checkpoint=checkpoint, written=None, reason=None, backups=(), passes=passes, settings={},
        backbone="", samples="", data="synthetic", train_samples=1, judge_samples=0, seconds={},
        peak_memory=None, device="cpu", kernel="reference", versions={}, options={},
    )  # fmt: skip


def test_regen_is_drawn_whatever_was_trained(tmp_path: Path) -> None:
    pair = PairResult("128:bf16", 1, 0.5, 0.4, 0.6, 0.5, 0, (0.6,), (0.5,))
    many = tuple(candidate(n, present=n == 20, chosen=n == 0) for n in range(21))
    full = PassResult(
        "bf16", "trained", 0.2, 0.01, 0.0, many, (pair, pair), {"a": (3.0, 0.1), "b": (1.0,)}, ""
    )
    bare = PassResult(
        "fp16", "unchanged", 0.2, 0.2, 0.0, (candidate(0, present=True, chosen=True),), (), {}, ""
    )
    draw(result((full, bare), tmp_path / "checkpoint-$1"), tmp_path / "regen.png")
    draw(result((bare,), tmp_path), tmp_path / "bare.png")
    two, one = pixels(tmp_path / "regen.png"), pixels(tmp_path / "bare.png")
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.8 * one.shape[0]


def test_what_the_checkpoint_had_is_shown_even_if_it_is_the_worst() -> None:
    from sla_ckpt.regen.plot import MOST_CANDIDATES, _shown

    shown = _shown(tuple(candidate(n, present=n == 20) for n in range(21)))
    assert len(shown) == MOST_CANDIDATES and shown[0].loss < shown[-2].loss
    assert [c.name for c in shown if c.present] == ["trained, step 20"]
