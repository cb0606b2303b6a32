"""States that are whole but stand in another container under their name."""

from __future__ import annotations

from pathlib import Path

from sla_ckpt.checks.entries import twin_as_body
from sla_ckpt.errors import FormatError, MigrationError
from sla_ckpt.formats.layouts.names import parse_name, strip_wrappers
from sla_ckpt.formats.layouts.tensors import TensorBag, open_tensors
from sla_ckpt.formats.payload import StoredTensor
from sla_ckpt.formats.simpletuner import read_payload
from sla_ckpt.formats.twin import read_twin
from sla_ckpt.migrate.legacy import read_legacy
from sla_ckpt.migrate.plan import Step
from sla_ckpt.state import STATE_VERSION


def salvage_state(path: Path, kind: str, *, name: str) -> tuple[str, object, Step]:
    """Read a state that is not the ``torch.save`` archive it should be.

    Args:
        path: The file.
        kind: ``"legacy-torch"`` or ``"safetensors"``.
        name: How messages name it.

    Returns:
        What it really is, its payload, and the step that converts it.

    Raises:
        MigrationError: A safetensors file without any pair.
        SlaCkptError: It cannot be read (:func:`~.legacy.read_legacy`).
    """
    if kind == "legacy-torch":
        value = read_legacy(path, name=name)
        step = Step("container converted", name, "an old, non-zip torch file", "zip", "SLA002")
        return "legacy torch file", value, step
    step = Step("container converted", name, "a safetensors file", "a torch zip", "SLA002")
    with open_tensors(path) as bag:
        if "sla_ckpt.version" in bag.metadata:
            return "safetensors twin under this name", twin_as_body(read_twin(path)), step
        return "safetensors file", pairs_payload(bag, name=name), step


def salvage_twin(path: Path, *, name: str) -> tuple[str, object, dict[str, str]]:
    """Read a twin that stands alone, also if its metadata or its container is wrong.

    Returns:
        What it really is, its payload, and the origin it records.

    Raises:
        SlaCkptError: It cannot be read.
    """
    try:
        state = read_twin(path, name=name, coerce_metadata=True)
    except FormatError as error:
        if error.kind != "zip":
            raise
        return "torch zip under the twin's name", read_payload(path, name=name).value, {}
    return "safetensors twin", twin_as_body(state), dict(state.origin)


def pairs_payload(bag: TensorBag, *, name: str) -> dict[str, object]:
    """A payload from tensors named ``128:bf16/proj_l.weight`` (or with a dot).

    Raises:
        MigrationError: There is no such tensor.
    """
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for raw, handle in bag.tensors.items():
        parsed = parse_name(strip_wrappers(raw))
        if parsed is not None and parsed.pair is not None:
            pairs.setdefault(parsed.pair, {})[f"proj_l.{parsed.tensor}"] = handle.read()
    if not pairs:
        raise MigrationError(
            f"{name} is a safetensors file without any pair of an SLA state",
            hint="find the file that the trainer wrote, or run: sla-ckpt regen",
            path=name,
        )
    return {"settings": None, "state": pairs, "version": STATE_VERSION}
