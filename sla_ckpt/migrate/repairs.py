"""Plan the repairs of a checkpoint where it stands: its state, twin, manifest and optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.context import Context
from sla_ckpt.errors import FormatError, SlaCkptError, UnsafePickleError
from sla_ckpt.formats.simpletuner import payload_to_state, read_payload
from sla_ckpt.formats.twin import read_twin, twin_pt_sha256
from sla_ckpt.migrate.draft import RepairContext
from sla_ckpt.migrate.file_changes import state_change, state_sha256, twin_change
from sla_ckpt.migrate.manifest import plan_manifest
from sla_ckpt.migrate.optimizer_repair import plan_optimizer
from sla_ckpt.migrate.options import MigrateOptions
from sla_ckpt.migrate.plan import FileChange, Plan, Problem, Step
from sla_ckpt.migrate.salvage import salvage_state, salvage_twin
from sla_ckpt.migrate.state_repairs import repair_state
from sla_ckpt.state import STATE_FILE, TWIN_FILE, SLASettings, SLAState


def plan_repairs(root: Path, options: MigrateOptions | None = None) -> Plan:
    """What would put a checkpoint right.

    Args:
        root: The checkpoint folder.
        options: What may be done.

    Raises:
        TargetNotFoundError: It cannot be read.
        UsageError: An option makes no sense here.
    """
    options = options or MigrateOptions()
    context = Context(LocalSource(root), options.verify_options())
    steps: list[Step] = []
    changes: list[FileChange] = []
    problems: list[Problem] = []
    source, state, state_steps, state_problems = _repaired_state(root, context, options)
    problems += state_problems
    pt, twin = _targets(context)
    if state is not None:
        steps += state_steps
        if state_steps:
            changes.append(state_change(root, pt, state))
        twin_steps, twin_changes = _plan_twin(
            root, context, options, state, twin, bool(state_steps)
        )
        steps += twin_steps
        changes += twin_changes
    if _allows(options, "SLA306"):
        present = {*context.source.files(), *(change.path for change in changes)}
        listed = plan_manifest(root, [n for n in (STATE_FILE, TWIN_FILE) if n in present])
        if listed is not None:
            steps.append(listed[0])
            changes.append(listed[1])
    _plan_optimizers(root, context, options, steps, changes, problems)
    return Plan(root, source, tuple(steps), tuple(changes), (), tuple(problems))


def _allows(options: MigrateOptions, code: str) -> bool:
    return options.codes is None or code in options.codes


def _targets(context: Context) -> tuple[str, str]:
    """Where the state and its twin are or belong."""
    pt = context.checkpoint.state_path or STATE_FILE
    folder = pt.rpartition("/")[0]
    return pt, context.checkpoint.twin_path or (f"{folder}/{TWIN_FILE}" if folder else TWIN_FILE)


def repair_context_of(context: Context, options: MigrateOptions, path: str) -> RepairContext:
    """What the repairs of the state may know about the checkpoint around it."""
    settings: SLASettings | None = None
    if context.run_config is not None:
        try:
            settings = context.run_config.sla_settings()
        except FormatError:
            settings = None
    return RepairContext(
        path,
        context.expectation,
        context.compute_dtype,
        settings,
        options.settings(),
        options.codes,
        options.drop_strays,
    )


def _repaired_state(
    root: Path, context: Context, options: MigrateOptions
) -> tuple[str, SLAState | None, tuple[Step, ...], tuple[Problem, ...]]:
    """(what was detected, the state, steps, problems)."""
    pt, twin = _targets(context)
    if context.checkpoint.state_path is None:
        return _from_twin(root, context, options, pt, twin)
    taken: tuple[Step, ...] = ()
    try:
        source, value = "SimpleTuner v1", read_payload(root / pt, name=pt).value
    except FormatError as error:
        if error.kind not in ("legacy-torch", "safetensors") or not _allows(options, "SLA002"):
            return "unreadable", None, (), (_unreadable(error),)
        try:
            source, value, step = salvage_state(root / pt, error.kind, name=pt)
        except SlaCkptError as worse:
            return "unreadable", None, (), (_unreadable(worse),)
        taken = (step,)
    state, more, problems = repair_state(value, repair_context_of(context, options, pt))
    if state is not None:
        origin = _origin(root, context, twin)
        if options.variant is not None:
            origin["sla_variant"] = options.variant
        state = replace(state, origin=origin)
    return source, state, (*taken, *more) if state is not None else (), problems


def _unreadable(error: SlaCkptError) -> Problem:
    code = "SLA003" if isinstance(error, UnsafePickleError) else "SLA002"
    return Problem(error.message, error.hint, code)


def _origin(root: Path, context: Context, twin: str) -> dict[str, str]:
    """What the twin beside the state says about its origin, if it belongs to this very file."""
    if context.twin is None or context.payload is None:
        return {}
    try:
        belongs = twin_pt_sha256(root / twin) == context.payload.sha256
        if not belongs:
            belongs = payload_to_state(context.payload, name="").equals(context.twin)
    except SlaCkptError:
        return {}
    return dict(context.twin.origin) if belongs else {}


def _from_twin(
    root: Path, context: Context, options: MigrateOptions, pt: str, twin: str
) -> tuple[str, SLAState | None, tuple[Step, ...], tuple[Problem, ...]]:
    if context.checkpoint.twin_path is None:
        return "no state", None, (), ()
    if not _allows(options, "SLA001"):
        return "safetensors twin", None, (), ()
    try:
        source, value, origin = salvage_twin(root / twin, name=twin)
    except SlaCkptError as error:
        return "unreadable", None, (), (_unreadable(error),)
    step = Step("state written from its twin", pt, "missing", f"as in {twin}", "SLA001")
    state, more, problems = repair_state(value, repair_context_of(context, options, pt))
    if state is None:
        return source, None, (), problems
    return source, replace(state, origin=origin), (step, *more), ()


def _plan_twin(
    root: Path,
    context: Context,
    options: MigrateOptions,
    state: SLAState,
    twin: str,
    state_changes: bool,
) -> tuple[list[Step], list[FileChange]]:
    """The twin follows the state; it is made anew only when asked for."""
    exists = context.checkpoint.twin_path is not None
    if not exists and options.to != "safetensors" and options.variant is None:
        return [], []
    sha256 = state_sha256(state)
    pt, _ = _targets(context)
    if not state_changes and context.payload is not None:
        # The file stays as it is, which need not be the bytes that would be written today.
        sha256 = context.payload.sha256
    if exists and _twin_is_current(root / twin, state, sha256):
        return [], []
    if exists and not state_changes and not _allows(options, "SLA212"):
        return [], []
    before = "belongs to another state" if exists else "missing"
    if context.twin_fault is not None:
        before = "unreadable"
    elif exists and context.twin is not None and context.twin.equals(state):
        before = "records another origin or hash"
    if exists and state_changes:
        before = "the state before its repair"
    step = Step("twin written", twin, before, f"as in {pt}", "SLA212" if exists else None)
    return [step], [twin_change(root, twin, state, sha256)]


def _twin_is_current(path: Path, state: SLAState, sha256: str) -> bool:
    try:
        twin = read_twin(path)
        return twin_pt_sha256(path) == sha256 and twin.equals(state) and twin.origin == state.origin
    except SlaCkptError:
        return False


def _plan_optimizers(
    root: Path,
    context: Context,
    options: MigrateOptions,
    steps: list[Step],
    changes: list[FileChange],
    problems: list[Problem],
) -> None:
    if not options.optimizer or not _allows(options, "SLA304"):
        return
    for name in context.checkpoint.optimizer_files:
        planned = plan_optimizer(root, name)
        if isinstance(planned, Problem):
            problems.append(planned)
        elif planned is not None:
            steps.append(planned[0])
            changes.append(planned[1])
