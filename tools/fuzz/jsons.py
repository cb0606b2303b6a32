"""JSON, TOML and the model card: how inputs are made, our readers, and what must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from sla_ckpt.checkpoint.jsonio import read_json_object
from sla_ckpt.checkpoint.layout import CheckpointKind
from sla_ckpt.checkpoint.manifest import add_to_manifest
from sla_ckpt.checkpoint.runconfig import UPLOADED_CONFIG, find_run_config
from sla_ckpt.checkpoint.weights import collect_weights
from sla_ckpt.errors import FormatError
from sla_ckpt.hub.card import BEGIN, TAGS, CardFacts, update_card
from sla_ckpt.hub.front_matter import check_metadata, metadata_of
from sla_ckpt.pairs.architecture import family_of_architecture
from sla_ckpt.pairs.table import expected_head_dims
from sla_ckpt.pairs.tokens import tokens_at
from sla_ckpt.state import PairKey, ProjectionTensors, SLAState
from tools.fuzz import seeds, texts, values


class Files:
    """A source of files in memory."""

    label = "memory"
    is_remote = False

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def files(self) -> Mapping[str, int]:
        return {path: len(data) for path, data in self._files.items()}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        return self._files[path][start : None if length is None else start + length]

    def subsource(self, prefix: str) -> Files:
        folder = f"{prefix.strip('/')}/"
        below = {k: v for k, v in self._files.items() if k.startswith(folder)}
        return Files({path.removeprefix(folder): data for path, data in below.items()})


def read_config(data: bytes) -> Any:
    config = read_json_object(Files({"config.json": data}), "config.json")
    tokens_at(config, 1024, 768, 81)
    expected = [expected_head_dims(config, trainer=name) for name in ("simpletuner", "diffusers")]
    for each in expected:
        assert all(type(dim) is int and dim > 0 for dim in each.head_dims), f"odd dims {each}"
    return expected


def read_run_config(data: bytes) -> Any:
    config, fault = find_run_config(Files({UPLOADED_CONFIG: data}))
    if config is None:
        raise FormatError(fault or "none")
    use_run_config(config)
    return config


def use_run_config(config: Any) -> None:
    assert all(isinstance(item, str | None) for item in (config.optimizer, config.compute_dtype))
    assert config.resolution is None or min(config.resolution) >= 64
    family = config.text("model_family")
    if family:
        family_of_architecture(family)
    config.sla_settings()


_TOML_WORDS = (
    b"[a]\n", b"[[a]]\n", b"a.b = 1\n", b"= ", b'"""', b"'''", b"1979-05-27", b"inf", b"0x",
    b"{a=1}", b"[" * 2000,
)  # fmt: skip


def make_toml(rng: Random) -> bytes:
    lines = [
        f"{key} = {json.dumps(value)}" for key, value in seeds.RUN_CONFIG.items() if key[0] != "-"
    ]
    return values.mutate_bytes(rng, "\n".join(lines).encode(), _TOML_WORDS)


def make_run_config(rng: Random) -> bytes:
    return texts.mutate_json(rng, seeds.RUN_CONFIG)


def read_manifest(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    return add_to_manifest(data, ["sla_attention.pt", "sla_attention.safetensors"])


def manifest_oracle(data: bytes, value: tuple[bytes, tuple[str, ...]]) -> str | None:
    written, added = value
    if not added:
        return None if written == data else "nothing was added, yet the bytes changed"
    again, more = add_to_manifest(written, ["sla_attention.pt", "sla_attention.safetensors"])
    if more or again != written:
        return "what was written lacks a file"
    before, after = json.loads(data.decode("utf-8-sig")), json.loads(written)
    lost = {key for key in before if key != "files" and repr(before[key]) != repr(after.get(key))}
    if lost or not set(before["files"]) <= set(after["files"]):
        return "the manifest lost something"
    return None


def read_index(data: bytes) -> Any:
    path = "transformer/diffusion_pytorch_model.safetensors.index.json"
    files = {path: data, "transformer/diffusion_pytorch_model-00001-of-00003.safetensors": b""}
    weights = collect_weights(Files(files), "transformer")
    weights.missing_numbered_shards()
    if weights.faults:
        raise FormatError(weights.faults[path])
    (index,) = weights.indexes
    for shard in index.shards:
        assert shard.startswith("transformer/"), f"shard outside its folder: {shard!r:.100}"
        assert "/" not in shard.removeprefix("transformer/"), f"shard outside: {shard!r:.100}"
    return index


_FACTS = CardFacts(
    "org/model", "", CheckpointKind.FULL, "FluxTransformer2DModel",
    SLAState({PairKey(1, "bf16"): ProjectionTensors.zeros(1)}), {"sla_attention.pt": "0" * 64},
)  # fmt: skip


def read_card(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8") from error
    card = update_card(text, _FACTS)
    check_metadata(card)
    return card


def card_oracle(data: bytes, card: str) -> str | None:
    text = data.decode("utf-8")
    after = metadata_of(card)
    tags = after["tags"]
    if not isinstance(tags, list) or not all(tag in tags for tag in TAGS):
        return "the tags are not there"
    if text.strip():
        before = metadata_of(text)
        if repr({**before, "tags": 0}) != repr({**after, "tags": 0}) and "tags" in before:
            return "metadata changed"
    if update_card(card, _FACTS) != card:
        return "a second update changes the card"
    return None if BEGIN in card else "the section is not there"


def make_manifest(rng: Random) -> bytes:
    return texts.mutate_json(rng, seeds.manifest())
