"""A state that is being put right: loose pairs, and the steps taken so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sla_ckpt.checks.expectation import Expectation
from sla_ckpt.errors import UsageError
from sla_ckpt.formats.payload import StoredTensor
from sla_ckpt.migrate.plan import Problem, Step
from sla_ckpt.state import PairKey, SLASettings


def _not_asked() -> Expectation:
    return Expectation(unknown="not asked")


@dataclass(frozen=True)
class RepairContext:
    """What the repairs may know and do.

    Attributes:
        path: The state file, relative to the checkpoint.
        expectation: Which pairs this model makes.
        compute_dtype: Token of the dtype that it trains and infers in; None when unknown.
        settings: Settings of the run, where a configuration tells; they fill gaps.
        given: Settings the user named; they replace what the file says.
        codes: Rules whose findings may be repaired; all when None.
        drop_strays: Also drop all-zero stray pairs.
    """

    path: str
    expectation: Expectation = field(default_factory=_not_asked)
    compute_dtype: str | None = None
    settings: SLASettings | None = None
    given: Mapping[str, object] = field(default_factory=dict)
    codes: frozenset[str] | None = None
    drop_strays: bool = False

    def missing(self, found: tuple[PairKey, ...]) -> tuple[PairKey, ...]:
        """Pairs this model needs that are not among ``found``."""
        if not self.expectation.known:
            return ()
        return tuple(
            pair for pair in self.expectation.pairs
            if not self.expectation.satisfied_by(pair, found)
        )  # fmt: skip

    def dtype_for(self, head_dim: int) -> str | None:
        """The dtype token a pair of this head_dim takes here; None when it cannot be told."""
        return self.expectation.dtype_for(head_dim, self.compute_dtype)

    def allows(self, code: str) -> bool:
        return self.codes is None or code in self.codes


@dataclass
class Draft:
    """Work in progress.

    Attributes:
        context: What may be done.
        settings: None, or a dict that is not yet checked.
        pairs: Key as found or as repaired -> tensor name -> tensor.
        version: As found.
        steps: What was changed.
        problems: What could not be.
    """

    context: RepairContext
    settings: object = None
    pairs: dict[object, dict[str, StoredTensor]] = field(default_factory=dict)
    version: object = None
    steps: list[Step] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def step(self, title: str, before: str, after: str, code: str | None) -> None:
        self.steps.append(Step(title, self.context.path, before, after, code))

    def problem(self, message: str, code: str | None, hint: str | None = None) -> None:
        self.problems.append(
            Problem(
                f"{self.context.path}: {message}", hint or "regenerate it: sla-ckpt regen", code
            )
        )


def lenient_key(raw: object) -> PairKey | None:
    """The pair that a mistyped key can only mean; None when it says too little."""
    if isinstance(raw, tuple) and len(raw) == 2:
        raw = f"{raw[0]}:{raw[1]}"
    if not isinstance(raw, str):
        return None
    try:
        return PairKey.parse_lenient(raw)
    except UsageError:
        return None


def head_dim_only(raw: object) -> int | None:
    """The head_dim of a key that lacks its dtype: ``128`` or ``"128"``."""
    text = str(raw) if type(raw) is int or isinstance(raw, str) else ""
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text[:7]) <= 65536 else None


def names_of(tensors: Iterable[str]) -> str:
    return ", ".join(sorted(tensors)) or "nothing"
