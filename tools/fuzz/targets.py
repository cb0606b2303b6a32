"""What is fuzzed: how an input is made, which of our readers takes it, who else must agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.fuzz import binary, compare, folder, jsons, pickles, seeds, texts


@dataclass(frozen=True)
class Target:
    """One thing that reads strangers' bytes.

    Attributes:
        name: Of the target.
        weight: Its share of a campaign's inputs.
        make: An input from randomness.
        read: Our reader; raises a :class:`~sla_ckpt.errors.SlaCkptError` or returns what it read.
        oracle: For inputs that were read: how another reader, or a rule that must hold, differs.
    """

    name: str
    weight: int
    make: Callable[[Random], bytes]
    read: Callable[[bytes], Any]
    oracle: Callable[[bytes, Any], str | None] = lambda _data, _value: None


def _config(rng: Random) -> bytes:
    return texts.mutate_json(rng, rng.choice(seeds.CONFIGS))


def _index(rng: Random) -> bytes:
    return texts.mutate_json(rng, seeds.INDEX)


_STATE = binary.torch_file("state", pickles.random_state)
_OPTIMIZER = binary.torch_file("optimizer", pickles.random_optimizer)
_DIFFERS = compare.torch_differs_from
_STORED_DIFFERS = compare.safetensors_differs

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("state", 40, _STATE, binary.read_state, _DIFFERS),
        Target("optimizer", 15, _OPTIMIZER, binary.read_optimizer_file, binary.optimizer_oracle),
        Target("weights", 10, binary.make_safetensors, binary.read_safetensors, _STORED_DIFFERS),
        Target("twin", 8, binary.make_twin, binary.read_twin_file, binary.twin_oracle),
        Target("config", 6, _config, jsons.read_config),
        Target("run-config", 5, jsons.make_run_config, jsons.read_run_config),
        Target("run-config-toml", 1, jsons.make_toml, folder.read_toml),
        Target("manifest", 4, jsons.make_manifest, jsons.read_manifest, jsons.manifest_oracle),
        Target("index", 4, _index, jsons.read_index),
        Target("card", 5, texts.mutate_card, jsons.read_card, jsons.card_oracle),
        Target("inspect", 4, _STATE, folder.read_bare_state, folder.judge),
        Target("checkpoint", 2, folder.make_checkpoint, folder.read_checkpoint, folder.judge),
    )
}
