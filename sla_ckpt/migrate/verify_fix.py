"""``verify --fix``: repair what is fixable, then verify again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sla_ckpt.checks.context import VerifyOptions
from sla_ckpt.checks.registry import select_rules
from sla_ckpt.checks.report import Report
from sla_ckpt.checks.verify import verify_many
from sla_ckpt.errors import SlaCkptError
from sla_ckpt.migrate.api import DEFAULT_CODES, finish_interrupted, fix
from sla_ckpt.migrate.options import MigrateOptions
from sla_ckpt.migrate.show import to_text
from sla_ckpt.paths import expand
from sla_ckpt.state import STATE_FILE

#: While these stand, others cannot be seen yet; they are repaired in the same go.
_HIDING = frozenset({"SLA001", "SLA002", "SLA004", "SLA201"})


def verify_and_fix(
    targets: Iterable[str],
    options: VerifyOptions,
    *,
    dry_run: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Report]:
    """Verify each target, repair its fixable findings, and report what is left.

    All-zero stray pairs (SLA207) are harmless and stay, unless ``options.select`` names that rule.

    Args:
        targets: As for :func:`sla_ckpt.checks.verify.verify_many`; repositories and files with
            other names are only verified.
        options: How to verify. Findings that are ignored are not repaired.
        dry_run: Only say what would be done.
        note: Called with the steps of each target.
    """
    migrate_options = MigrateOptions(
        expect=options.expect,
        config=options.config,
        base_model=options.base_model,
        drop_strays="SLA207" in options.select,
    )
    listed = list(targets)
    if not dry_run:
        for target in listed:
            _finish(target, note)
    for report in verify_many(listed, options):
        path = Path(report.target)
        local = path.is_dir() or (path.is_file() and path.name == STATE_FILE)
        codes = {f.code for f in report.findings if f.fixable}
        codes -= set() if migrate_options.drop_strays else {"SLA207"}
        if codes and not local:
            note(f"{report.target}: only folders and {STATE_FILE} are repaired, not this")
        if not local or not codes:
            yield report
            continue
        if codes & _HIDING:
            chosen = {rule.code for rule in select_rules(options.select, options.ignore)}
            codes |= DEFAULT_CODES & chosen
        try:
            result = fix(path, codes, migrate_options, dry_run=dry_run)
        except SlaCkptError as error:
            note(f"{report.target}: not repaired: {error.message}")
            if error.hint:
                note(f"  next: {error.hint}")
            yield report
            continue
        note(to_text(result, dry_run=dry_run))
        if dry_run or not result.applied.written:
            yield report
        else:
            yield next(iter(verify_many([report.target], options)))


def _finish(target: str, note: Callable[[str], None]) -> None:
    """A migration that was killed half-way is finished before anything is judged."""
    if not expand(target).is_dir():
        return
    try:
        finished = finish_interrupted(target)
    except SlaCkptError as error:
        note(f"{target}: an interrupted migration is not finished: {error.message}")
        return
    if finished:
        names = ", ".join(path.name for path in finished)
        note(f"{target}: finished an interrupted migration ({names})")
