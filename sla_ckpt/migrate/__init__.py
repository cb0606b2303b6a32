"""Bring older, foreign and broken states into the right form: plan first, then apply."""

from sla_ckpt.migrate.api import (
    DEFAULT_CODES,
    FixResult,
    finish_interrupted,
    fix,
    migrate,
    plan_migration,
    remaining_problems,
)
from sla_ckpt.migrate.options import MigrateOptions, targets
from sla_ckpt.migrate.plan import Plan, Problem, Step
from sla_ckpt.migrate.transaction import Applied, apply_plan

__all__ = [
    "DEFAULT_CODES",
    "Applied",
    "FixResult",
    "MigrateOptions",
    "Plan",
    "Problem",
    "Step",
    "apply_plan",
    "finish_interrupted",
    "fix",
    "migrate",
    "plan_migration",
    "remaining_problems",
    "targets",
]
