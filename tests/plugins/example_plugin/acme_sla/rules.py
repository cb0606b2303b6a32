"""A rule: what Acme's serving stack asks of a checkpoint beyond SLA itself."""

from collections.abc import Iterator

from sla_ckpt.plugins import Context, Fault, Rule

LARGEST_TOPK = 0.5

PAGE = """\
# ACME001: topk too large for Acme's kernels

**Symptom:** serving is no faster than with dense attention.

**Cause:** above a topk of 0.5 Acme's kernels keep so many blocks that nothing is gained.

**Way out:** train with a smaller topk, or serve with another stack.
"""


def topk_too_large(context: Context) -> Iterator[Fault]:
    """Looks at the settings only; a checkpoint without any is for the built-in rules to judge."""
    settings = context.settings
    if settings is not None and settings.topk > LARGEST_TOPK:
        yield Fault(
            f"{context.state_path}: topk is {settings.topk}, above the {LARGEST_TOPK} where "
            "Acme's kernels gain nothing",
            path=context.state_path,
            help="train with a smaller topk",
        )


TOPK_TOO_LARGE = Rule(
    code="ACME001",
    level="warning",
    title="topk too large for Acme's kernels",
    check=topk_too_large,
    page=PAGE,
)
