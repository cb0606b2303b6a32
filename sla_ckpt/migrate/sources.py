"""Recognise what a file of whatever project holds."""

from __future__ import annotations

from pathlib import Path

from sla_ckpt.checks.context import Context
from sla_ckpt.errors import FormatError, MigrationError
from sla_ckpt.formats.layouts.names import parse_name, strip_wrappers
from sla_ckpt.formats.layouts.read import LayerProjections, has_projections, read_layers
from sla_ckpt.formats.layouts.tensors import TensorBag, open_tensors
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.twin import read_twin
from sla_ckpt.migrate.draft import RepairContext
from sla_ckpt.migrate.legacy import legacy_tensors
from sla_ckpt.migrate.salvage import pairs_payload
from sla_ckpt.migrate.state_repairs import repair_state
from sla_ckpt.state import STATE_FILE, TWIN_FILE, SLAState


def read_source(path: Path) -> SLAState | LayerProjections:
    """Whatever a file or folder holds: a state, or projections per layer.

    Raises:
        MigrationError: No projection in any known layout.
        FormatError: Damaged, or not a tensor file.
    """
    if path.is_dir():
        own = [path / name for name in (STATE_FILE, TWIN_FILE) if (path / name).is_file()]
        path = own[0] if own else path
    try:
        with open_tensors(path) as bag:
            return _from_bag(path, bag)
    except FormatError as error:
        if error.kind != "legacy-torch":
            raise
        return _from_bag(path, legacy_tensors(path))


def _from_bag(path: Path, bag: TensorBag) -> SLAState | LayerProjections:
    if bag.container == "torch zip" and "version" in bag.values and _holds_pairs(bag):
        return read_state(path)
    if "sla_ckpt.version" in bag.metadata:
        return read_twin(path)
    if _holds_pairs(bag):
        payload = pairs_payload(bag, name=str(path))
        state, _, problems = repair_state(payload, RepairContext(str(path)))
        if state is None:
            raise MigrationError(problems[0].message, hint=problems[0].hint, path=str(path))
        return state
    return read_layers(bag)


def _holds_pairs(bag: TensorBag) -> bool:
    names = (parse_name(strip_wrappers(name)) for name in bag.tensors)
    return any(name is not None and name.layout == "pairs" for name in names) or any(
        name.startswith("state.") and name.endswith(("proj_l.weight", "proj_l.bias"))
        for name in bag.tensors
    )


def find_foreign(root: Path, context: Context) -> Path | None:
    """A file or folder of a checkpoint without state that holds projections; None if none does."""
    candidates = []
    denoiser = context.checkpoint.denoiser
    if denoiser is not None and denoiser.weights.files:
        candidates.append(root / denoiser.folder if denoiser.folder else root)
    suffixes = (".pth", ".pt", ".safetensors", ".bin")
    try:
        loose = sorted(item for item in root.iterdir() if item.name.endswith(suffixes))
    except OSError:
        loose = []
    candidates += [item for item in loose if item.is_file() and not _is_trainer_file(item.name)]
    for candidate in candidates:
        try:
            with open_tensors(candidate) as bag:
                if has_projections(bag):
                    return candidate
        except FormatError:
            continue
    return None


def _is_trainer_file(name: str) -> bool:
    return name.startswith(("optimizer", "scheduler", "scaler", "sla_attention."))
