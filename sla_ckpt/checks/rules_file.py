"""Is the file there, readable, harmless, and of the right structure? SLA001–SLA004, SLA212."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.layout import DENOISER_FOLDERS, CheckpointKind
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.checks.evidence import signs_of_sla
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.errors import StructureError, UnsafePickleError
from sla_ckpt.state import STATE_FILE, STATE_VERSION
from sla_ckpt.text import for_target, join_some, quoted, short_repr

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context

REGEN = "restore it from a backup or the Hub, or run: sla-ckpt regen {target}"


@rule("SLA001", "error", "state file missing", fixable=True)
def state_missing(context: Context) -> Iterator[Fault]:
    checkpoint = context.checkpoint
    if context.is_bare_twin or context.source.is_remote:
        return  # SLA401 and SLA404 speak of repositories
    if checkpoint.state_path is not None:
        yield from _misplaced(context, checkpoint.state_path)
        return
    if _is_directory(context):
        return  # SLA002 says so
    if checkpoint.twin_path is not None and context.twin is not None:
        yield Fault(
            f"{STATE_FILE} is missing; its twin {checkpoint.twin_path} is there",
            path=checkpoint.twin_path,
            help=f"write it again from the twin: sla-ckpt verify --fix {context.target}",
        )
        return
    for fault in _without_twin(context):
        yield replace(fault, fixable=False)


def _misplaced(context: Context, path: str) -> Iterator[Fault]:
    """The trainer looks at the checkpoint's root only; use_sla finds the file in both places."""
    purpose = context.options.purpose
    if path == STATE_FILE or purpose == "inference" or not context.checkpoint.has_trainer_state:
        return
    yield Fault(
        f"the state is {path}, where the trainer does not look: a resume starts it at zero",
        path=path,
        help=f"move it up to {STATE_FILE}",
        level="error" if purpose == "resume" else "warning",
        fixable=False,
    )


def _without_twin(context: Context) -> Iterator[Fault]:
    broken = getattr(context.source, "broken", {}).get(STATE_FILE)
    if broken:
        yield Fault(
            f"{STATE_FILE} cannot be opened: {broken}",
            path=STATE_FILE,
            help=REGEN.format(target=context.target),
        )
        return
    if (above := _in_the_folder_above(context)) is not None:
        yield Fault(
            f"{STATE_FILE} is not here, but in the folder above, {above}",
            path=STATE_FILE,
            help=f"run: sla-ckpt verify {quoted(str(above))}",
        )
        return
    signs = signs_of_sla(context)
    other_case = [
        name for name in context.source.files() if name.lower() == STATE_FILE and name != STATE_FILE
    ]
    if other_case:
        yield Fault(
            f"{STATE_FILE} is missing, but {other_case[0]} differs only by case",
            path=other_case[0],
            help=f"rename it to {STATE_FILE}",
        )
    elif signs:
        yield Fault(
            f"{STATE_FILE} is missing, and this was trained with SLA: {'; '.join(signs)}",
            path=STATE_FILE,
            help=REGEN.format(target=context.target),
        )
    elif context.checkpoint.kind is CheckpointKind.UNKNOWN:
        yield Fault(
            f"{STATE_FILE} is missing, and nothing here looks like a checkpoint",
            path=STATE_FILE,
            help="name the folder of a checkpoint, a pipeline or an adapter",
        )
    else:
        yield Fault(
            f"{STATE_FILE} is missing; nothing here says that SLA was used",
            path=STATE_FILE,
            help="if this was never trained with SLA, this tool has nothing to check; "
            "otherwise " + REGEN.format(target=context.target),
        )


def _in_the_folder_above(context: Context) -> Path | None:
    """The checkpoint that a denoiser's own folder belongs to, if that has the state."""
    source = context.source
    if not isinstance(source, LocalSource) or source.root.resolve().name not in DENOISER_FOLDERS:
        return None
    above = source.root / ".." if source.root == Path() else source.root.parent
    return above if (above / STATE_FILE).is_file() else None


def _is_directory(context: Context) -> bool:
    return STATE_FILE in getattr(context.source, "directories", ())


@rule("SLA002", "error", "state file unreadable", fixable=True)
def state_unreadable(context: Context) -> Iterator[Fault]:
    if context.checkpoint.state_path is None and _is_directory(context):
        yield Fault(
            f"{STATE_FILE} is a directory, not a file",
            path=STATE_FILE,
            help="look into it: an unpacked archive? then " + REGEN.format(target=context.target),
            fixable=False,
        )
    for fault in (context.payload_fault, context.twin_fault):
        if fault is not None and not isinstance(fault, UnsafePickleError | StructureError):
            yield Fault(
                fault.message,
                path=fault.path or context.state_path,
                help=for_target(fault.hint, context.target) or REGEN.format(target=context.target),
                fixable=fault is context.payload_fault and _is_convertible(context, fault.kind),
            )


def _is_convertible(context: Context, kind: str) -> bool:
    """Whether ``--fix`` can read it in place of a torch.save archive."""
    if kind != "safetensors" or context.checkpoint.state_path is None:
        return kind == "legacy-torch"
    head = context.source.read(context.checkpoint.state_path, 0, 64 * 1024)
    return b"proj_l.weight" in head and b"proj_l.bias" in head


@rule("SLA003", "error", "unsafe pickle")
def unsafe_pickle(context: Context) -> Iterator[Fault]:
    fault = context.payload_fault
    if isinstance(fault, UnsafePickleError):
        yield Fault(
            fault.message,
            path=context.state_path,
            help=fault.hint or "do not load this file; get it again from a source you trust",
        )


@rule("SLA004", "error", "wrong structure or unknown version", fixable=True)
def wrong_structure(context: Context) -> Iterator[Fault]:
    path = context.state_path
    for fault in (context.payload_fault, context.twin_fault):
        if isinstance(fault, StructureError):
            yield Fault(
                fault.message,
                path=fault.path or path,
                help=for_target(fault.hint, context.target),
                fixable=False,
            )
    body = context.body
    if context.payload is None and body is None:
        return
    migrate = f"run: sla-ckpt migrate {context.target}"
    if body is None:
        held = context.payload.value if context.payload else None
        yield Fault(
            f"{path} holds {short_repr(held)}, not a dict of settings, state and version",
            path=path,
            help=REGEN.format(target=context.target),
            fixable=False,
        )
        return
    if "state" not in body:
        keys = [short_repr(key) for key in body]
        yield Fault(
            f"{path} has no 'state' entry (it has {join_some(keys) or 'nothing'})",
            path=path,
            help=migrate,
        )
        return  # without a state, the version says nothing more
    if not isinstance(body["state"], dict):
        yield Fault(
            f"{path}: 'state' is {short_repr(body['state'])}, not a dict of pairs",
            path=path,
            help=REGEN.format(target=context.target),
            fixable=False,
        )
    elif not body["state"]:
        yield Fault(
            f"{path} holds no pair: SLA never ran before it was saved",
            path=path,
            help=REGEN.format(target=context.target),
            fixable=False,
        )
    version = body.get("version")
    if isinstance(version, bool) or version != STATE_VERSION:
        absent = version is None
        shown = "no version" if absent else f"version {short_repr(version)}"
        yield Fault(
            f"{path} has {shown}; only version {STATE_VERSION} is known",
            path=path,
            help=f"run: sla-ckpt verify --fix {context.target}"
            if absent
            else "update sla-ckpt, or regenerate the file if it was edited by hand",
            fixable=absent,
        )


@rule("SLA212", "error", "twin does not match the state file", fixable=True)
def twin_differs(context: Context) -> Iterator[Fault]:
    if context.twin is None or context.payload is None or context.body is None:
        return
    from sla_ckpt.formats.simpletuner import payload_to_state

    try:
        state = payload_to_state(context.payload, name=context.state_path)
    except StructureError:
        return  # other rules name what is wrong with the file itself
    if not state.equals(context.twin):
        yield Fault(
            f"{context.checkpoint.twin_path} does not hold what {context.state_path} holds: "
            "it belongs to another state",
            path=context.checkpoint.twin_path,
            help=f"write it again: sla-ckpt verify --fix {context.target}, or delete it",
        )
