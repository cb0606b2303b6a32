"""Plan the conversion between an SLA state and the layouts of other projects."""

from __future__ import annotations

import json
from pathlib import Path

from sla_ckpt.checks.context import Context
from sla_ckpt.errors import MigrationError, SlaCkptError, UsageError
from sla_ckpt.formats.layouts.read import LayerProjections, read_layers
from sla_ckpt.formats.layouts.tensors import open_tensors
from sla_ckpt.formats.layouts.write import encode_layers, writable
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.twin import read_twin
from sla_ckpt.migrate.file_changes import (
    bytes_change,
    differs,
    state_change,
    state_sha256,
    twin_change,
)
from sla_ckpt.migrate.manifest import plan_manifest
from sla_ckpt.migrate.model import ModelFacts
from sla_ckpt.migrate.options import MigrateOptions
from sla_ckpt.migrate.plan import FileChange, Plan, Step
from sla_ckpt.migrate.reduction import reduce_layers, spread_shared
from sla_ckpt.migrate.sources import read_source
from sla_ckpt.state import (
    STATE_FILE,
    TWIN_FILE,
    PairKey,
    ProjectionTensors,
    SLASettings,
    SLAState,
)


def plan_conversion(root: Path, options: MigrateOptions, context: Context) -> Plan:
    """Convert ``options.source`` (or the checkpoint's own state) to ``options.to``.

    Args:
        root: The checkpoint folder; where the result goes unless ``output`` says otherwise.
        options: What to read and write.
        context: The checkpoint, for its model's facts.

    Raises:
        MigrationError: It cannot be converted without losing something.
        UsageError: An option is missing or makes no sense.
        FormatError: The source is damaged.
    """
    facts = ModelFacts.of(context)
    source = options.source or _own_state(root, context)
    found = read_source(source)
    if options.to in writable():
        return _to_layers(root, options, facts, found, source)
    if isinstance(found, SLAState):
        return _to_state(root, options, found, "SimpleTuner pairs", (), None)
    return _layers_to_state(root, options, context, facts, found, source)


def _own_state(root: Path, context: Context) -> Path:
    path = context.checkpoint.state_path or context.checkpoint.twin_path
    if path is None:
        raise MigrationError(
            f"{root} has no {STATE_FILE} to convert",
            hint="name the file to read with --from, or run: sla-ckpt regen",
            path=str(root),
        )
    return root / path


def _layers_to_state(
    root: Path,
    options: MigrateOptions,
    context: Context,
    facts: ModelFacts,
    found: LayerProjections,
    source: Path,
) -> Plan:
    facts.check_layers(found, str(source))
    projection, spread = reduce_layers(found, reduce=options.reduce, label=str(source))
    key, notes = _key_for(found.head_dim, options, facts, context)
    settings, assumed = _settings_for(options, context)
    origin = {"tool": "sla-ckpt migrate", "source_layout": found.layout}
    if options.variant is not None:
        origin["sla_variant"] = options.variant
    if spread is not None:
        origin["reduction"] = f"mean of {spread.layers} layers: {spread}"
        notes.append(f"the mean of the layers makes a {spread}")
    if assumed:
        notes.append(
            "the source does not say which settings SLA ran with; the trainer's defaults are "
            "recorded (--topk, --feature-map, --blkq, --blkk set others)"
        )
    state = SLAState({key: projection}, settings, origin=origin)
    what = f"{len(found.layers)} layers" if not found.is_shared else "one projection"
    return _to_state(root, options, state, f"{found.title} ({what})", (*found.notes, *notes), what)


def _key_for(
    head_dim: int, options: MigrateOptions, facts: ModelFacts, context: Context
) -> tuple[PairKey, list[str]]:
    if options.pair is not None:
        if options.pair.head_dim != head_dim:
            raise UsageError(
                f"--pair {options.pair}: the source has head_dim {head_dim}",
                hint=f"write --pair {head_dim}:{options.pair.dtype}",
            )
        return options.pair, []
    if facts.head_dims and head_dim not in facts.head_dims:
        raise MigrationError(
            f"the source has head_dim {head_dim}, this model has "
            f"{', '.join(map(str, facts.head_dims))}",
            hint="they belong to different models",
        )
    dtype = facts.dtype_for(head_dim)
    if dtype is not None:
        return PairKey(head_dim, dtype), []
    note = f"the dtype is not known; {head_dim}:bf16 is written (--pair names another)"
    return PairKey(head_dim, "bf16"), [note]


def _settings_for(options: MigrateOptions, context: Context) -> tuple[SLASettings, bool]:
    """Settings to record, and whether they are only assumed."""
    known = None
    if context.run_config is not None:
        known = context.run_config.sla_settings()
    base = (known or SLASettings()).to_dict()
    return SLASettings.from_mapping({**base, **options.settings()}), (
        known is None and "topk" not in options.settings()
    )


def _to_state(
    root: Path,
    options: MigrateOptions,
    state: SLAState,
    title: str,
    notes: tuple[str, ...],
    before: str | None,
) -> Plan:
    """Write a state and its twin into a folder."""
    folder = options.output or root
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="make it, or name another --output")
    exact = SLAState(
        {key: projection.as_float32() for key, projection in state.pairs.items()},
        state.settings or SLASettings.from_mapping(options.settings()),
        origin=state.origin,
    )
    if _is_there(folder, exact):
        return Plan(folder, title, notes=notes)
    present = [name for name in (STATE_FILE, TWIN_FILE) if (folder / name).exists()]
    if present and not options.overwrite:
        raise MigrationError(
            f"{folder / present[0]} is there and holds something else",
            hint="replace it (a backup is kept) with --overwrite, or write to another --output",
            path=str(folder / present[0]),
        )
    pairs = ", ".join(map(str, exact.pairs))
    shown = before or "read from another file"
    steps = [Step("state written", STATE_FILE, f"{title}: {shown}", f"pairs {pairs}")]
    changes = [state_change(folder, STATE_FILE, exact)]
    steps.append(Step("twin written", TWIN_FILE, "missing", f"as in {STATE_FILE}"))
    changes.append(twin_change(folder, TWIN_FILE, exact, state_sha256(exact)))
    listed = plan_manifest(folder, (STATE_FILE, TWIN_FILE))
    if listed is not None:
        steps.append(listed[0])
        changes.append(listed[1])
    return Plan(folder, title, tuple(steps), tuple(changes), notes)


def _is_there(folder: Path, state: SLAState) -> bool:
    """Whether the folder already holds this very state."""
    try:
        pt, twin = read_state(folder / STATE_FILE), read_twin(folder / TWIN_FILE)
    except SlaCkptError:
        return False
    return pt.equals(state) and twin.equals(state)


def _to_layers(
    root: Path,
    options: MigrateOptions,
    facts: ModelFacts,
    found: SLAState | LayerProjections,
    source: Path,
) -> Plan:
    assert options.to is not None
    suffix = writable()[options.to]
    path = options.output or root / f"sla_{options.to}{suffix}"
    if path.suffix != suffix:
        raise UsageError(
            f"--output {path.name}: {options.to} files end in {suffix}",
            hint=f"write --output {path.with_suffix(suffix)}",
        )
    layers, title, notes = _layers_of(options, facts, found, source)
    metadata = _layer_metadata(found)
    data = encode_layers(layers, options.to, stem=path.stem, metadata=metadata)
    if path.is_file() and path.read_bytes() == data:
        return Plan(path.parent, title, notes=notes)
    if path.exists() and not options.overwrite:
        raise MigrationError(
            f"{path} is there and holds something else",
            hint="replace it (a backup is kept) with --overwrite, or name another --output",
            path=str(path),
        )
    dim = len(layers[0].bias)
    step = Step(
        "per-layer file written", path.name, title, f"{len(layers)} layers of {dim}x{dim}, exact"
    )
    change = _layers_change(path, data, layers)
    return Plan(path.parent, title, (step,), (change,), notes)


def _layers_change(path: Path, data: bytes, layers: dict[int, ProjectionTensors]) -> FileChange:
    def check(staged: Path) -> None:
        with open_tensors(staged) as bag:
            back = read_layers(bag).layers
        if back.keys() != layers.keys() or not all(
            back[layer].equals(layers[layer]) for layer in layers
        ):
            raise differs(path.name)

    return bytes_change(path.parent, path.name, data, check)


def _layer_metadata(found: SLAState | LayerProjections) -> dict[str, str]:
    if isinstance(found, SLAState) and found.settings is not None:
        return {"sla_ckpt.settings": json.dumps(found.settings.to_dict())}
    return {}


def _layers_of(
    options: MigrateOptions,
    facts: ModelFacts,
    found: SLAState | LayerProjections,
    source: Path,
) -> tuple[dict[int, ProjectionTensors], str, tuple[str, ...]]:
    if isinstance(found, LayerProjections) and not found.is_shared:
        facts.check_layers(found, str(source))
        return dict(found.layers), found.title, found.notes
    count = options.layers or facts.layers
    if count is None:
        raise UsageError(
            "the number of layers is not known",
            hint="write --layers N (the model's config names it)",
        )
    if isinstance(found, LayerProjections):
        return spread_shared(found.layers[0], count), found.title, found.notes
    key, projection = _one_pair(options, facts, found)
    title = f"SimpleTuner pair {key}"
    return spread_shared(projection.as_float32(), count), title, ()


def _one_pair(
    options: MigrateOptions, facts: ModelFacts, state: SLAState
) -> tuple[PairKey, ProjectionTensors]:
    wanted = state.pairs
    if options.pair is not None:
        if options.pair not in wanted:
            raise UsageError(
                f"there is no pair {options.pair}; there are {', '.join(map(str, wanted))}",
                hint="name one of them with --pair",
            )
        return options.pair, wanted[options.pair]
    usable = [key for key in wanted if not wanted[key].is_zero and (
        not facts.head_dims or key.head_dim in facts.head_dims)] or list(wanted)  # fmt: skip
    different = [key for key in usable if not wanted[key].equals(wanted[usable[0]])]
    if not usable or different:
        raise UsageError(
            f"the state has several pairs: {', '.join(map(str, wanted)) or 'none'}",
            hint="name the one to write with --pair",
        )
    return usable[0], wanted[usable[0]]
