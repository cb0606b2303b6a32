"""What a user may ask of a migration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sla_ckpt.checks.context import VerifyOptions
from sla_ckpt.formats.layouts.write import writable
from sla_ckpt.state import PairKey


def targets() -> tuple[str, ...]:
    """What ``to`` may be: the state, its twin, and the per-layer layouts that can be written."""
    return ("simpletuner", "safetensors", *writable())


@dataclass(frozen=True)
class MigrateOptions:
    """How to migrate.

    Attributes:
        source: A foreign file, index or folder to read from; by default what the checkpoint has.
        to: One of :func:`targets`; by default the state is repaired where it is.
        output: File to write (per-layer layouts), or folder (the state).
        reduce: ``"mean"`` averages layers that differ; None refuses them.
        layers: Number of layers to write; by default the model's, from its config.
        expect: Pairs the model needs, when they cannot be derived.
        pair: Which pair to write per layer, when there are several.
        config: The trainer's configuration file.
        base_model: Folder of the base model of an adapter.
        topk: Setting to record where the source has none; likewise the next three.
        feature_map: See :class:`~sla_ckpt.state.SLASettings`.
        blkq: Likewise.
        blkk: Likewise.
        variant: SLA variant that trained the source, to record as its origin.
        drop_strays: Drop all-zero pairs that no layer of this model makes.
        optimizer: Repair the optimizer's groups.
        overwrite: Replace a state that is there and good.
        codes: Only repairs of these rules; all when None.
    """

    source: Path | None = None
    to: str | None = None
    output: Path | None = None
    reduce: Literal["mean"] | None = None
    layers: int | None = None
    expect: tuple[PairKey, ...] = ()
    pair: PairKey | None = None
    config: Path | None = None
    base_model: Path | None = None
    topk: float | None = None
    feature_map: str | None = None
    blkq: int | None = None
    blkk: int | None = None
    variant: str | None = None
    drop_strays: bool = False
    optimizer: bool = True
    overwrite: bool = False
    codes: frozenset[str] | None = None

    def verify_options(self) -> VerifyOptions:
        """How to look at the checkpoint, as far as these options say."""
        return VerifyOptions(expect=self.expect, config=self.config, base_model=self.base_model)

    def settings(self) -> dict[str, object]:
        """The settings that were given."""
        given = {
            "topk": self.topk,
            "feature_map": self.feature_map,
            "blkq": self.blkq,
            "blkk": self.blkk,
        }
        return {name: value for name, value in given.items() if value is not None}
