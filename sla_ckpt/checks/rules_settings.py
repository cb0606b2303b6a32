"""Can the kernels run with these settings, and does the run agree? SLA101–SLA107, SLA211."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sla_ckpt.blocks import fewest_tokens, kept_blocks
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.errors import FormatError
from sla_ckpt.state import FEATURE_MAPS, SLA_VARIANTS, SLASettings
from sla_ckpt.text import join_some, short_repr

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context

BLKQ_CHOICES = (64, 128)
BLKK_CHOICES = (64,)


@rule("SLA101", "error", "settings missing or incomplete", fixable=True)
def settings_incomplete(context: Context) -> Iterator[Fault]:
    if context.body is None:
        return
    path = context.state_path
    fix = f"run: sla-ckpt verify --fix {context.target} (fills in the defaults)"
    record = (
        f"record what the run used: sla-ckpt migrate {context.target} with --topk, --feature-map, "
        "--blkq, --blkk"
    )
    raw = context.raw_settings
    if raw is None:
        value = context.body.get("settings")
        absent = value is None
        yield Fault(
            f"{path}: settings is {short_repr(value)}",
            path=path,
            help=fix if absent else record,
            fixable=absent,
        )
        return
    try:
        SLASettings.from_mapping(raw)
    except FormatError as error:
        yield Fault(
            f"{path}: {error.message}",
            path=path,
            help=record,
            fixable=False,
        )
    missing = [name for name in SLASettings.names() if name not in raw]
    if missing == ["tie_feature_map_qk"]:
        # Older trainers did not write it, and true is what they ran with.
        yield Fault(
            f"{path}: settings lacks tie_feature_map_qk (an older file; true is meant)",
            path=path,
            help=fix,
            level="warning",
        )
    elif missing:
        yield Fault(f"{path}: settings lacks {', '.join(missing)}", path=path, help=fix)
    extra = [short_repr(key) for key in raw if key not in SLASettings.names()]
    if extra:
        yield Fault(
            f"{path}: settings has entries nobody reads: {join_some(extra)}",
            path=path,
            help="the trainer ignores them, and wipes a loaded state when they differ",
            level="warning",
        )


@rule("SLA102", "error", "topk outside (0, 1]")
def topk_range(context: Context) -> Iterator[Fault]:
    settings = context.settings
    if settings is None or (math.isfinite(settings.topk) and 0 < settings.topk <= 1):
        return
    if settings.topk > 1:
        effect = "the kernel then keeps every block and nothing is sparse"
    else:
        effect = "the kernel then keeps no block and every output is NaN"
    yield Fault(
        f"{context.state_path}: topk is {settings.topk:g}, outside (0, 1]; {effect}",
        path=context.state_path,
        help="topk is a share, not a count: retrain or regenerate with --topk between 0 and 1",
    )


@rule("SLA103", "error", "block sizes that the kernels refuse")
def block_sizes(context: Context) -> Iterator[Fault]:
    settings = context.settings
    if settings is None:
        return
    for name, value, choices in (
        ("blkq", settings.blkq, BLKQ_CHOICES),
        ("blkk", settings.blkk, BLKK_CHOICES),
    ):
        if value not in choices:
            allowed = " or ".join(str(choice) for choice in choices)
            yield Fault(
                f"{context.state_path}: {name} is {value}, not {allowed}; the trainer then runs "
                "dense attention on every call and proj_l is never trained",
                path=context.state_path,
                help=f"set {name} to {choices[0]} in sla_config and train again",
            )


@rule("SLA104", "error", "feature map that the kernels do not have")
def feature_map(context: Context) -> Iterator[Fault]:
    settings = context.settings
    if settings is not None and settings.feature_map not in FEATURE_MAPS:
        yield Fault(
            f"{context.state_path}: feature_map is {short_repr(settings.feature_map)}; the "
            f"kernels have {', '.join(FEATURE_MAPS)}",
            path=context.state_path,
            help="the trainer falls back to dense attention: choose one of these and retrain",
        )


@rule("SLA105", "error", "topk keeps no key block at this length")
def keeps_no_block(context: Context) -> Iterator[Fault]:
    settings = context.settings
    if settings is None or settings.blkk < 1 or not 0 < settings.topk <= 1:
        return
    if context.tokens is None:
        return
    tokens, where = context.tokens
    if kept_blocks(tokens, settings) >= 1:
        return
    blocks = -(-tokens // settings.blkk)
    yield Fault(
        f"{context.state_path}: topk {settings.topk:g} of {blocks} key blocks ({tokens} tokens, "
        f"{where}) keeps none; the reference kernel returns NaN",
        path=context.state_path,
        help=f"train at {fewest_tokens(settings)} tokens or more, or raise topk to "
        f"{_share_that_keeps_one(blocks):.3g} or more",
    )


def _share_that_keeps_one(blocks: int) -> float:
    """About 1 / blocks in three digits, rounded so that one block is kept: 0.334 for three."""
    share = float(f"{1 / blocks:.3g}")
    if int(share * blocks) < 1:
        share += 10.0 ** (math.floor(math.log10(share)) - 2)
    return share


@rule("SLA106", "warning", "settings differ from the run's sla_config")
def settings_differ(context: Context) -> Iterator[Fault]:
    if context.run_config is None or context.settings is None:
        return
    try:
        configured = context.run_config.sla_settings()
    except FormatError as error:
        yield Fault(
            f"{context.run_config.path}: {error.message}",
            path=context.run_config.path,
            help=error.hint or "correct sla_config in the trainer's configuration",
        )
        return
    if configured is None:
        return
    stored = context.settings.to_dict()
    differing = [
        f"{name} {stored[name]} here, {value} there"
        for name, value in configured.to_dict().items()
        if stored[name] != value
    ]
    if differing:
        yield Fault(
            f"{context.state_path}: settings differ from {context.run_config.path}: "
            f"{'; '.join(differing)}",
            path=context.state_path,
            help="enabling SLA with other settings wipes the loaded state: make sla_config agree",
        )


@rule("SLA107", "info", "SLA variant not recorded")
def variant_unknown(context: Context) -> Iterator[Fault]:
    if context.body is None or context.origin.get("sla_variant") in SLA_VARIANTS:
        return
    yield Fault(
        f"{context.state_path} does not say which SLA made it; main is assumed "
        "(linear branch over all keys, thu-ml/SLA since 2025-12-15)",
        path=context.state_path,
        help="if it was trained with branch SLA-1 or an older main, load it with variant='sla-1'",
    )


@rule("SLA211", "warning", "regenerated without real samples")
def synthetic_origin(context: Context) -> Iterator[Fault]:
    if context.origin.get("data") == "synthetic":
        yield Fault(
            f"{context.checkpoint.twin_path} says the state was regenerated from synthetic "
            "samples: quality is not confirmed",
            path=context.checkpoint.twin_path,
            help=f"run again with real ones: sla-ckpt regen {context.target} --data DIR "
            "or --images DIR",
        )
