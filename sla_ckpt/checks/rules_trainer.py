"""Will training go on from here? SLA304–SLA306, SLA308."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.checks.evidence import manifest_files, sla_groups
from sla_ckpt.checks.registry import Fault, rule
from sla_ckpt.state import STATE_FILE
from sla_ckpt.text import count

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context

FP32_PROJECTION_BREAKS = ("adamw_bf16",)


@rule("SLA304", "warning", "optimizer carries the SLA parameter group", fixable=True)
def optimizer_trap(context: Context) -> Iterator[Fault]:
    purpose = context.options.purpose
    if purpose == "inference":
        return
    for path in context.checkpoint.optimizer_files:
        total, groups = sla_groups(context, path)
        if groups:
            yield Fault(
                f"{path} has {count(total, 'parameter group')}, {groups} of them SLA's; "
                f"a fresh process has {total - groups}: resume fails with 'different number of "
                "parameter groups'",
                path=path,
                help=f"the weights are fine; run: sla-ckpt verify --fix {context.target} "
                "(only proj_l's moments are dropped)",
                level="error" if purpose == "resume" else None,
            )


@rule("SLA305", "warning", "the configuration does not use SLA")
def config_without_sla(context: Context) -> Iterator[Fault]:
    config = context.run_config
    if config is None or context.checkpoint.state_path is None:
        return
    mechanism = config.attention_mechanism
    if mechanism is None or mechanism.lower() != "sla":
        has = f"has attention_mechanism {mechanism}" if mechanism else "sets no attention_mechanism"
        yield Fault(
            f"{config.path} {has}, not sla: the state would not be used",
            path=config.path,
            help="set attention_mechanism to sla, or name the right configuration",
            level="error" if context.options.purpose == "resume" else None,
        )


@rule("SLA306", "warning", "manifest does not list the state file", fixable=True)
def manifest_entry(context: Context) -> Iterator[Fault]:
    if context.options.purpose == "inference" or context.checkpoint.state_path != STATE_FILE:
        return
    listed = manifest_files(context)
    if listed is not None and STATE_FILE not in listed:
        yield Fault(
            f"{MANIFEST_FILE} does not list {STATE_FILE}: a resume from S3 downloads only what "
            "it lists",
            path=MANIFEST_FILE,
            help=f"run: sla-ckpt verify --fix {context.target}",
        )


@rule("SLA308", "warning", "optimizer cannot train a float32 proj_l")
def optimizer_dtype(context: Context) -> Iterator[Fault]:
    config = context.run_config
    if config is None or context.options.purpose == "inference":
        return
    name = (config.optimizer or "").lower()
    if name in FP32_PROJECTION_BREAKS and (config.attention_mechanism or "").lower() == "sla":
        yield Fault(
            f"{config.path}: optimizer {name} accepts only bfloat16 parameters and fails at the "
            "first step with a gradient for proj_l",
            path=config.path,
            help="choose an optimizer that takes float32 parameters, for instance adamw_torch",
            level="error" if context.options.purpose == "resume" else None,
        )
