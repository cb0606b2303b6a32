"""Are the right pairs there, with usable tensors? SLA201–SLA210."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from sla_ckpt.checks.entries import Entry
from sla_ckpt.checks.expectation import HALF_DTYPES
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.pairs.strays import stray_source
from sla_ckpt.state import BIAS, WEIGHT, PairKey
from sla_ckpt.text import count, join_some

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context


def _of_this_model(context: Context) -> Iterator[Entry]:
    """Entries that are not strays: what is wrong with a stray harms nobody."""
    for entry in context.entries:
        if entry.key is None or not context.expectation.is_stray(entry.key):
            yield entry


@rule("SLA201", "error", "key is not <head_dim>:<dtype>", fixable=True)
def key_syntax(context: Context) -> Iterator[Fault]:
    for entry in context.entries:
        if entry.key_fault is not None:
            yield Fault(
                f"{context.state_path}: {entry.key_fault}; the trainer skips it",
                path=context.state_path,
                help=f"run: sla-ckpt verify --fix {context.target}"
                if (fixable := _is_long_token(entry.name) or _is_completable(context, entry))
                else f"say what it is: sla-ckpt migrate {context.target} --expect 128:bf16",
                fixable=fixable,
            )


def _is_long_token(name: str) -> bool:
    """``128:bfloat16`` says clearly what is meant; ``128`` does not."""
    from sla_ckpt.errors import UsageError

    try:
        PairKey.parse_lenient(name)
    except UsageError:
        return False
    return True


def _is_completable(context: Context, entry: Entry) -> bool:
    """Whether a key that lacks its dtype can only take the one that this checkpoint needs."""
    if entry.head_dim is None:
        return False
    exact = {p.dtype for p in context.expectation.exact if p.head_dim == entry.head_dim}
    return len(exact) == 1 or (context.expectation.dtype or context.compute_dtype) is not None


def _missing(context: Context) -> Iterator[tuple[PairKey, tuple[str, ...]]]:
    """Expected pairs that are absent, with the dtypes that exist for their head_dim."""
    expectation = context.expectation
    for pair in expectation.pairs:
        if not expectation.satisfied_by(pair, context.found):
            yield pair, tuple(k.dtype for k in context.found if k.head_dim == pair.head_dim)


@rule("SLA202", "error", "pair that this model materialises is missing")
def pair_missing(context: Context) -> Iterator[Fault]:
    if not context.entries:
        return
    expectation = context.expectation
    if not expectation.known:
        yield Fault(
            f"which pairs belong in {context.state_path} is not known: {expectation.unknown}",
            path=context.state_path,
            help=expectation.unknown_help,
            level="info",
        )
        return
    for pair, dtypes in _missing(context):
        if dtypes:
            continue  # SLA209 says it better
        needed = "--expect names it" if expectation.exact else f"{expectation.basis} needs it"
        have = ", ".join(str(key) for key in context.found) or "none"
        yield Fault(
            f"{context.state_path}: pair {pair} is missing ({needed}; the file has {have})",
            path=context.state_path,
            help=f"the trainer starts it at zero without a word; run: "
            f"sla-ckpt regen {context.target}",
        )


@rule("SLA203", "error", "tensor shape does not match head_dim")
def tensor_shapes(context: Context) -> Iterator[Fault]:
    for entry in context.entries:
        if entry.key is None:
            continue
        head_dim = entry.key.head_dim
        for name, wanted in ((WEIGHT, (head_dim, head_dim)), (BIAS, (head_dim,))):
            tensor = entry.tensors.get(name)
            if tensor is not None and tensor.shape != wanted:
                yield Fault(
                    f"{context.state_path}: {entry.name}/{name} has shape "
                    f"{list(tensor.shape)}, not {list(wanted)}",
                    path=context.state_path,
                    help="it belongs to another model: find the right file, or run: "
                    f"sla-ckpt regen {context.target}",
                )


@rule("SLA204", "error", "proj_l is not float32", fixable=True)
def projection_dtype(context: Context) -> Iterator[Fault]:
    for entry in context.entries:
        wrong = {
            tensor.dtype
            for name, tensor in entry.tensors.items()
            if name in (WEIGHT, BIAS) and tensor.dtype != "float32"
        }
        if wrong:
            exact = wrong <= {"bfloat16", "float16"}
            yield Fault(
                f"{context.state_path}: {entry.name} is {' and '.join(sorted(wrong))}, not float32"
                + ("" if exact else " (converting it may round)"),
                path=context.state_path,
                help=f"run: sla-ckpt verify --fix {context.target}"
                if exact
                else f"run: sla-ckpt migrate {context.target}",
                fixable=exact,
            )


@rule("SLA205", "error", "NaN or Inf")
def not_finite(context: Context) -> Iterator[Fault]:
    for entry in context.entries:
        for name, tensor in entry.tensors.items():
            if tensor.array.dtype.kind != "f":
                continue
            bad = tensor.array.size - int(np.count_nonzero(np.isfinite(tensor.array)))
            if bad:
                yield Fault(
                    f"{context.state_path}: {entry.name}/{name} has {bad:,} of "
                    f"{tensor.array.size:,} values NaN or Inf",
                    path=context.state_path,
                    help="training went wrong before this was saved; take an older checkpoint or "
                    f"run: sla-ckpt regen {context.target}",
                )


@rule("SLA206", "warning", "projection all zero: never trained")
def all_zero(context: Context) -> Iterator[Fault]:
    for entry in _of_this_model(context):
        if entry.is_zero:
            yield Fault(
                f"{context.state_path}: {entry.name} is all zero: never trained, or lost and "
                "re-initialised; the linear branch adds nothing",
                path=context.state_path,
                help="compare with an older checkpoint; to train it run: "
                f"sla-ckpt regen {context.target}",
            )


@rule("SLA207", "info", "pair that this model does not materialise", fixable=True)
def stray_pair(context: Context) -> Iterator[Fault]:
    for entry in context.entries:
        if entry.key is None or not context.expectation.is_stray(entry.key):
            continue
        source = stray_source(entry.key.head_dim)
        origin = f", probably from {source}" if source else ""
        zero = ", all zero" if entry.is_zero else ""
        yield Fault(
            f"{context.state_path}: {entry.name} is not a pair of "
            f"{context.expectation.basis}{origin}{zero}",
            path=context.state_path,
            help=f"harmless; to drop it: sla-ckpt migrate --drop-strays {context.target}"
            if entry.is_zero
            else "it may belong to another model",
            fixable=entry.is_zero,
        )


@rule("SLA208", "error", "weight or bias missing, or unknown tensors", fixable=True)
def tensor_names(context: Context) -> Iterator[Fault]:
    for entry in context.entries:
        if entry.fault is not None:
            yield Fault(
                f"{context.state_path}: {entry.name} {entry.fault}",
                path=context.state_path,
                help=f"run: sla-ckpt regen {context.target}",
                fixable=False,
            )
            continue
        parts = []
        if entry.missing:
            parts.append(f"lacks {' and '.join(entry.missing)}")
        if entry.unknown:
            parts.append(f"has unknown {join_some(list(entry.unknown))}")
        if parts:
            prefixed = any(name.endswith((WEIGHT, BIAS)) for name in entry.unknown)
            yield Fault(
                f"{context.state_path}: {entry.name} {' and '.join(parts)}",
                path=context.state_path,
                help=f"prefixes are stripped by: sla-ckpt verify --fix {context.target}"
                if prefixed
                else f"run: sla-ckpt regen {context.target}",
                fixable=prefixed,
            )


@rule("SLA209", "error", "pair exists only for another dtype", fixable=True)
def other_dtype(context: Context) -> Iterator[Fault]:
    if not context.entries or not context.expectation.known:
        return
    for pair, dtypes in _missing(context):
        if not dtypes:
            continue
        either = context.expectation.dtype is None and not context.expectation.exact
        needed = " or ".join(HALF_DTYPES) if either else pair.dtype
        yield Fault(
            f"{context.state_path}: head_dim {pair.head_dim} is there only as "
            f"{', '.join(dtypes)}, {needed} is needed",
            path=context.state_path,
            help=f"the projection does not depend on it; copy it: sla-ckpt verify --fix "
            f"{context.target}",
        )


@rule("SLA210", "warning", "head_dim that thu-ml/SLA cannot run")
def head_dim_support(context: Context) -> Iterator[Fault]:
    if not context.expectation.known:
        return
    head_dims = sorted({pair.head_dim for pair in context.expectation.pairs})
    bad = [d for d in head_dims if d > 128 or d & (d - 1)]
    if bad and (context.entries or context.checkpoint.state_path is not None):
        numbers = ", ".join(str(d) for d in bad)
        yield Fault(
            f"{context.state_path}: thu-ml/SLA cannot run {count(len(bad), 'head_dim')} of this "
            f"model ({numbers}): the trainer falls back to dense attention",
            path=context.state_path,
            help="sla_ckpt's own kernels run it: use sla_ckpt.use_sla or regen",
        )
