"""Repairs of the state itself, each one a small function from draft to draft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sla_ckpt.errors import StructureError
from sla_ckpt.formats.layouts.names import strip_wrappers
from sla_ckpt.formats.payload import StatePayload, StoredTensor
from sla_ckpt.formats.simpletuner import payload_to_state
from sla_ckpt.migrate.draft import Draft, RepairContext, head_dim_only, lenient_key, names_of
from sla_ckpt.migrate.plan import Problem, Step
from sla_ckpt.state import BIAS, STATE_VERSION, WEIGHT, PairKey, SLASettings, SLAState
from sla_ckpt.text import short_repr

#: Where people put a payload inside another dict.
_WRAPPERS = ("module", "state_dict", "model", "sla", "sla_attention")
_NAME_THEM = "name the right ones: sla-ckpt migrate with --topk, --feature-map, --blkq, --blkk"
_EXACT = ("bfloat16", "float16")


def repair_state(
    value: object, context: RepairContext
) -> tuple[SLAState | None, tuple[Step, ...], tuple[Problem, ...]]:
    """Make a well-formed state of what a file holds.

    Args:
        value: The payload's tree.
        context: What is known and allowed.

    Returns:
        The state (None when it cannot be made), the steps taken, and what stays wrong.
    """
    draft = _read(value, context)
    for repair in _REPAIRS:
        if not draft.problems:
            repair(draft)
    if draft.problems:
        return None, (), tuple(draft.problems)
    tree = {"settings": draft.settings, "state": draft.pairs, "version": draft.version}
    try:
        state = payload_to_state(StatePayload(tree, (), "", 0), name=context.path)
    except StructureError as error:
        return None, (), (Problem(error.message, "regenerate it: sla-ckpt regen", "SLA004"),)
    return state, tuple(draft.steps), ()


def _read(value: object, context: RepairContext) -> Draft:
    """Find the payload, unwrapping what surrounds it."""
    draft = Draft(context)
    if isinstance(value, Mapping) and "state" not in value:
        inner = [key for key in _WRAPPERS if isinstance(value.get(key), Mapping)]
        if len(inner) == 1 and context.allows("SLA004"):
            draft.step("unwrapped", f"payload under {inner[0]!r}", "at the top level", "SLA004")
            value = value[inner[0]]
    if not isinstance(value, Mapping):
        draft.problem(f"it holds {short_repr(value)}, not a dict", "SLA004")
        return draft
    state: object = value.get("state")
    if state is None and _is_bare(value):
        # thu-ml/SLA's module saved by itself
        draft.step("wrapped", "a bare module's tensors", "a state of version 1", "SLA004")
        draft.pairs = {None: dict(value)}
        draft.version = STATE_VERSION
        return draft
    if not isinstance(state, Mapping):
        draft.problem(f"state is {short_repr(state)}, not a dict of pairs", "SLA004")
        return draft
    draft.settings, draft.version = value.get("settings"), value.get("version")
    if state and _is_bare(state):
        draft.pairs = {None: dict(state)}
        return draft
    for key, entry in state.items():
        if not isinstance(entry, Mapping):
            draft.problem(f"pair {short_repr(key)} is {short_repr(entry)}", "SLA208")
        elif not all(isinstance(item, StoredTensor) for item in entry.values()):
            draft.problem(f"pair {short_repr(key)} holds something else than tensors", "SLA208")
        else:
            draft.pairs[key] = dict(entry)
    return draft


def _is_bare(value: Mapping[Any, Any]) -> bool:
    """Tensors of one module, without a key above them."""
    return bool(value) and all(
        isinstance(key, str) and strip_wrappers(key) in (WEIGHT, BIAS) and
        isinstance(item, StoredTensor)
        for key, item in value.items()
    )  # fmt: skip


def _version(draft: Draft) -> None:
    if draft.version is None and draft.context.allows("SLA004"):
        draft.step("version added", "no version", str(STATE_VERSION), "SLA004")
        draft.version = STATE_VERSION
    elif type(draft.version) is not int or draft.version != STATE_VERSION:
        draft.problem(
            f"version {short_repr(draft.version)} is not known",
            "SLA004",
            "update sla-ckpt, or run: sla-ckpt regen",
        )


def _tensor_names(draft: Draft) -> None:
    """Strip wrapper prefixes; two names that become one are a problem."""
    for key, tensors in draft.pairs.items():
        stripped: dict[str, StoredTensor] = {}
        for name, tensor in tensors.items():
            plain = strip_wrappers(name) if isinstance(name, str) else repr(name)
            if plain in stripped:
                draft.problem(
                    f"{short_repr(key)}: two tensors are named {plain} once wrappers are stripped",
                    "SLA208",
                )
                return
            stripped[plain] = tensor
        if stripped.keys() != {WEIGHT, BIAS}:
            draft.problem(f"pair {short_repr(key)} has {names_of(stripped)}", "SLA208")
        elif stripped.keys() != tensors.keys() and draft.context.allows("SLA208"):
            draft.step("prefixes stripped", names_of(tensors), names_of(stripped), "SLA208")
            draft.pairs[key] = stripped


def _keys(draft: Draft) -> None:
    """Keys in the one form that the trainer reads."""
    repaired: dict[object, dict[str, StoredTensor]] = {}
    for raw, tensors in draft.pairs.items():
        key = _strict(raw) or lenient_key(raw) or _completed(draft, raw, tensors)
        if key is None:
            shown = "the tensors have no key" if raw is None else f"key {short_repr(raw)}"
            draft.problem(
                f"{shown}: which dtype it is for cannot be told",
                "SLA201",
                "name the pair: --expect 128:bf16",
            )
            return
        text = str(key)
        if text in repaired:
            if not _same(repaired[text], tensors):
                draft.problem(
                    f"two different projections would become {text}",
                    "SLA201",
                    "keep the right one: sla-ckpt inspect shows both",
                )
                return
            draft.step("duplicate dropped", short_repr(raw), text, "SLA201")
        elif raw != text:
            if not draft.context.allows("SLA201"):
                draft.problem(f"key {short_repr(raw)} means {text}", "SLA201", "repair SLA201 too")
                return
            before = "no key" if raw is None else f"key {short_repr(raw)}"
            draft.step("key normalised", before, text, "SLA201")
        repaired.setdefault(text, tensors)
    draft.pairs = repaired


def _strict(raw: object) -> PairKey | None:
    try:
        return PairKey.parse(raw)
    except StructureError:
        return None


def _completed(draft: Draft, raw: object, tensors: Mapping[str, StoredTensor]) -> PairKey | None:
    """A key without dtype takes the one this checkpoint needs, if that is known."""
    bias = tensors.get(BIAS)
    head_dim = head_dim_only(raw) if raw is not None else None
    if raw is None and bias is not None and len(bias.shape) == 1:
        head_dim = bias.shape[0]
    if head_dim is None:
        return None
    dtype = draft.context.dtype_for(head_dim)
    return PairKey(head_dim, dtype) if dtype else None


def _same(first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and np.array_equal(first[name].array, second[name].array, equal_nan=True)
        for name in first
    )


def _settings(draft: Draft) -> None:
    """Every setting there, of its own type, and nothing else."""
    raw = draft.settings
    shown = short_repr(raw)
    if raw is not None and not isinstance(raw, Mapping):
        if not draft.context.given:
            draft.problem(f"settings are {shown}, not a dict", "SLA101", _NAME_THEM)
            return
        raw = None
    defaults = (draft.context.settings or SLASettings()).to_dict()
    present = {} if raw is None else {k: v for k, v in raw.items() if k in SLASettings.names()}
    try:
        merged = {**defaults, **present, **draft.context.given}
        complete = SLASettings.from_mapping(merged).to_dict()
    except StructureError as error:
        draft.problem(error.message, "SLA101", _NAME_THEM)
        return
    if raw is not None and _identical(raw, complete):
        return
    if not draft.context.allows("SLA101"):
        return
    basis = "the run's configuration" if draft.context.settings else "the trainer's defaults"
    if raw is None:
        before, title = shown, f"settings filled in from {basis}"
    else:
        absent = [name for name in complete if name not in raw]
        extra = [short_repr(name) for name in raw if name not in complete]
        parts = [f"no {', '.join(absent)}"] if absent else []
        parts += [f"unread {', '.join(extra)}"] if extra else []
        parts += [
            f"{name}={short_repr(raw[name])}"
            for name in complete
            if name in raw and not _identical({name: raw[name]}, {name: complete[name]})
        ]
        before = "; ".join(parts)
        title = f"settings completed from {basis}" if absent else "settings corrected"
    after = ", ".join(f"{name}={value}" for name, value in complete.items())
    draft.step(title, before, after, "SLA101")
    draft.settings = complete


def _identical(raw: Mapping[Any, Any], complete: Mapping[str, Any]) -> bool:
    return raw.keys() == complete.keys() and all(
        type(raw[name]) is type(complete[name]) and raw[name] == complete[name] for name in complete
    )


def _float32(draft: Draft) -> None:
    """proj_l in float32: exact from the half types, rounded (and said so) from float64."""
    if not draft.context.allows("SLA204"):
        return
    for key, tensors in draft.pairs.items():
        wrong = {name: item for name, item in tensors.items() if item.dtype != "float32"}
        if not wrong:
            continue
        dtypes = sorted({item.dtype for item in wrong.values()})
        if not set(dtypes) <= {*_EXACT, "float64"}:
            draft.problem(
                f"{key} is {', '.join(dtypes)}, which cannot be turned into float32 faithfully",
                "SLA204",
            )
            return
        for name, item in wrong.items():
            array = np.ascontiguousarray(item.array, np.float32)
            tensors[name] = StoredTensor(array, "float32", item.shape)
        error = max(
            float(np.max(np.abs(item.array - tensors[name].array), initial=0.0))
            for name, item in wrong.items()
        )
        exact = "exactly" if error == 0 else f"largest rounding {error:.2g}"
        draft.step(f"{key} to float32", " and ".join(dtypes), f"float32, {exact}", "SLA204")


def _needed_dtype(draft: Draft) -> None:
    """Copy a pair to the dtype that is needed: the projection does not depend on it."""
    if not draft.context.allows("SLA209"):
        return
    found = _found(draft)
    for pair in draft.context.missing(found):
        same_dim = [key for key in found if key.head_dim == pair.head_dim]
        # An all-zero pair was never trained and is no donor beside a trained one.
        donors = [key for key in same_dim if not _is_zero(draft.pairs[str(key)])] or same_dim
        if not donors:
            continue  # SLA202: nothing here can stand for it
        if len({_bytes(draft.pairs[str(key)]) for key in donors}) > 1:
            draft.problem(
                f"{pair} is needed; {' and '.join(map(str, donors))} differ",
                "SLA209",
                "drop the wrong one, or run: sla-ckpt regen",
            )
            return
        donor = str(donors[0])
        draft.pairs[str(pair)] = dict(draft.pairs[donor])
        draft.step(
            f"{donor} copied to {pair}", f"only {donor}", f"{donor} and {pair}, equal", "SLA209"
        )


def _found(draft: Draft) -> tuple[PairKey, ...]:
    return tuple(PairKey.parse(key) for key in draft.pairs)


def _is_zero(tensors: Mapping[str, StoredTensor]) -> bool:
    return not any(np.count_nonzero(tensor.array) for tensor in tensors.values())


def _bytes(tensors: Mapping[str, StoredTensor]) -> bytes:
    return tensors[WEIGHT].array.tobytes() + tensors[BIAS].array.tobytes()


def _strays(draft: Draft) -> None:
    if not draft.context.drop_strays:
        return
    for pair in _found(draft):
        stray = draft.context.expectation.is_stray(pair)
        if stray and _is_zero(draft.pairs[str(pair)]) and len(draft.pairs) > 1:
            del draft.pairs[str(pair)]
            draft.step(f"{pair} dropped", "an all-zero stray pair", "gone", "SLA207")


_REPAIRS = (_version, _tensor_names, _keys, _settings, _float32, _needed_dtype, _strays)
