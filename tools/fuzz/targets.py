"""What is fuzzed: how an input is made, which of our readers takes it, who else must agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from click import unstyle

from sla_ckpt.checkpoint.layout import CheckpointKind
from sla_ckpt.checkpoint.manifest import add_to_manifest
from sla_ckpt.checkpoint.runconfig import UPLOADED_CONFIG, find_run_config, load_run_config
from sla_ckpt.checkpoint.weights import collect_weights
from sla_ckpt.checks.render import to_github, to_json, to_sarif, to_text
from sla_ckpt.checks.verify import verify
from sla_ckpt.errors import FormatError, SlaCkptError
from sla_ckpt.formats.optimizer import OptimizerStructure, read_optimizer
from sla_ckpt.formats.payload import StatePayload
from sla_ckpt.formats.safetensors_header import SafetensorsHeader, read_header
from sla_ckpt.formats.simpletuner import payload_to_state, read_payload
from sla_ckpt.formats.twin import encode_twin, read_twin
from sla_ckpt.hub.card import BEGIN, TAGS, CardFacts, update_card
from sla_ckpt.hub.front_matter import check_metadata, metadata_of
from sla_ckpt.pairs.architecture import family_of_architecture
from sla_ckpt.pairs.table import expected_head_dims
from sla_ckpt.pairs.tokens import tokens_at
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState
from tools.fuzz import compare, pickles, seeds, texts, values, zips

_NAME = "x"


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


def _torch_file(
    which: str, random_payload: Callable[[Random], pickles.Payload]
) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        files = seeds.saved_states() if which == "state" else seeds.saved_optimizers()
        opcodes = seeds.opcodes(which)
        choice = rng.random()
        if choice < 0.12:
            return values.mutate_bytes(rng, rng.choice(files))
        if choice < 0.35:
            return zips.build(zips.mutate(rng, rng.choice(seeds.archives(which))))
        if choice < 0.6:
            ops, storages = rng.choice(opcodes)
            stream = pickles.mutate_ops(rng, ops, [donor for donor, _ in opcodes])
        elif choice < 0.68:
            ops, storages = rng.choice(opcodes)
            stream = values.mutate_bytes(rng, b"".join(ops))
        elif choice < 0.82:
            payload = random_payload(rng)
            stream, storages = pickles.dump(payload.tree), payload.storages
        elif choice < 0.92:
            payload = pickles.Payload(None)
            payload.tree = [pickles.random_tensor(rng, payload) for _ in range(rng.randrange(1, 4))]
            stream, storages = pickles.dump(payload.tree), payload.storages
        else:
            stream, storages = pickles.random_ops(rng), {"0": bytes(16)}
        archive = zips.torch_archive(stream, storages)
        return zips.build(zips.mutate(rng, archive) if rng.random() < 0.05 else archive)

    return make


def _read_state(data: bytes) -> StatePayload:
    payload = read_payload(data, name=_NAME)
    try:
        state = payload_to_state(payload, name=_NAME)
    except SlaCkptError as error:
        _check_error(error)
    else:
        back = read_twin(encode_twin(state, pt_sha256=payload.sha256), name=_NAME)
        assert back.equals(state), "the twin of a clean state reads back differently"
    return payload


def _check_error(error: SlaCkptError) -> None:
    """What every message promises: one printable line of bounded length, and a next step."""
    for text in (error.message, error.hint):
        if text is not None:
            assert text and text.isprintable() and len(text) < 2000, f"unfit message {text!r:.300}"


def _read_safetensors(data: bytes) -> SafetensorsHeader:
    return read_header(lambda start, length: data[start : start + length], len(data), name=_NAME)


def _make_safetensors(rng: Random) -> bytes:
    if rng.random() < 0.4:
        header, body = rng.choice(seeds.safetensors_seeds())
    else:
        metadata = rng.choice(
            (None, {}, {"format": "pt"}, {"modelspec.architecture": "flux-1-dev/lora"})
        )
        header, body = texts.safetensors(rng, texts.random_parts(rng), metadata)
    return texts.mutate_safetensors(rng, header, body)


def _twin_state(rng: Random) -> SLAState:
    import numpy as np

    pairs = {}
    for _ in range(rng.randrange(0, 3)):
        dim = rng.choice((1, 2, 3))
        weight = np.full((dim, dim), 0.5, np.float32)
        key = PairKey(dim, rng.choice(("bf16", "fp16", "fp32")))
        pairs[key] = ProjectionTensors(weight, np.zeros(dim, np.float32))
    return SLAState(pairs, rng.choice((SLASettings(), None)), origin={"tool": "sla-ckpt"})


def _make_twin(rng: Random) -> bytes:
    data = encode_twin(_twin_state(rng), pt_sha256="0" * 64)
    length = int.from_bytes(data[:8], "little")
    return texts.mutate_safetensors(rng, json.loads(data[8 : 8 + length]), data[8 + length :])


def _twin_oracle(data: bytes, state: SLAState) -> str | None:
    again = read_twin(encode_twin(state, pt_sha256="0" * 64), name=_NAME)
    if not again.equals(state) or again.origin != state.origin:
        return "written again it reads back differently"
    return compare.safetensors_differs(data, _read_safetensors(data))


class _Files:
    """A source of files in memory."""

    label = "memory"
    is_remote = False

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def files(self) -> Mapping[str, int]:
        return {path: len(data) for path, data in self._files.items()}

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        return self._files[path][start : None if length is None else start + length]

    def subsource(self, prefix: str) -> _Files:
        raise NotImplementedError(prefix)


def _read_config(data: bytes) -> Any:
    from sla_ckpt.checkpoint.jsonio import read_json_object

    config = read_json_object(_Files({"config.json": data}), "config.json")
    tokens_at(config, 1024, 768, 81)
    expected = [expected_head_dims(config, trainer=name) for name in ("simpletuner", "diffusers")]
    for each in expected:
        assert all(type(dim) is int and dim > 0 for dim in each.head_dims), f"odd dims {each}"
    return expected


def _read_run_config(data: bytes) -> Any:
    config, fault = find_run_config(_Files({UPLOADED_CONFIG: data}))
    if config is None:
        raise FormatError(fault or "none")
    _use_run_config(config)
    return config


def _use_run_config(config: Any) -> None:
    assert all(isinstance(item, str | None) for item in (config.optimizer, config.compute_dtype))
    assert config.resolution is None or min(config.resolution) >= 64
    family = config.text("model_family")
    if family:
        family_of_architecture(family)
    config.sla_settings()


def _make_toml(rng: Random) -> bytes:
    lines = [
        f"{key} = {json.dumps(value)}" for key, value in seeds.RUN_CONFIG.items() if key[0] != "-"
    ]
    words = (b"[a]\n", b"[[a]]\n", b"a.b = 1\n", b"= ", b'"""', b"'''", b"1979-05-27", b"inf", b"0x", b"{a=1}", b"[" * 2000)  # fmt: skip
    return values.mutate_bytes(rng, "\n".join(lines).encode(), words)


def _make_run_config(rng: Random) -> bytes:
    return texts.mutate_json(rng, seeds.RUN_CONFIG)


def _read_manifest(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    return add_to_manifest(data, ["sla_attention.pt", "sla_attention.safetensors"])


def _manifest_oracle(data: bytes, value: tuple[bytes, tuple[str, ...]]) -> str | None:
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


def _read_index(data: bytes) -> Any:
    path = "transformer/diffusion_pytorch_model.safetensors.index.json"
    files = {path: data, "transformer/diffusion_pytorch_model-00001-of-00003.safetensors": b""}
    weights = collect_weights(_Files(files), "transformer")
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


def _read_card(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8") from error
    card = update_card(text, _FACTS)
    check_metadata(card)
    return card


def _card_oracle(data: bytes, card: str) -> str | None:
    text = data.decode("utf-8")
    after = metadata_of(card)
    if not set(TAGS) <= set(after["tags"]):
        return "the tags are not there"
    if text.strip():
        before = metadata_of(text)
        if repr({**before, "tags": 0}) != repr({**after, "tags": 0}) and "tags" in before:
            return "metadata changed"
    if update_card(card, _FACTS) != card:
        return "a second update changes the card"
    return None if BEGIN in card else "the section is not there"


class _Folder:
    """A checkpoint on disk of which one file at a time is replaced."""

    def __init__(self) -> None:
        self._directory: TemporaryDirectory[str] | None = None
        self.root = Path()
        self.tidy: dict[str, bytes] = {}

    def open(self) -> None:
        if self._directory is not None:
            return
        memory = Path("/dev/shm")
        self._directory = TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.root = Path(self._directory.name) / "checkpoint-3"
        header, body = seeds.safetensors_seeds()[0]
        raw = json.dumps(header).encode()
        weights = len(raw).to_bytes(8, "little") + raw + body
        self.tidy = {
            "sla_attention.pt": seeds.saved_states()[0],
            "sla_attention.safetensors": encode_twin(_twin_state(Random(1)), pt_sha256="0" * 64),
            "optimizer.bin": seeds.saved_optimizers()[0],
            "training_state.json": b'{"global_step": 3, "epoch": 1}',
            "checkpoint_manifest.json": json.dumps(seeds.json_seed("out_peft/checkpoint-3/checkpoint_manifest.json")).encode(),
            "simpletuner_config.json": json.dumps(seeds.RUN_CONFIG).encode(),
            "transformer/config.json": json.dumps(seeds.CONFIGS[0]).encode(),
            "transformer/diffusion_pytorch_model-00001-of-00003.safetensors": weights,
            "transformer/diffusion_pytorch_model.safetensors.index.json": json.dumps(seeds.INDEX).encode(),
            "model_index.json": b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}',
        }  # fmt: skip
        for name, data in self.tidy.items():
            self.put(name, data)

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


_FOLDER = _Folder()
_MAKERS: tuple[tuple[str, Callable[[Random], bytes]], ...] = (
    ("sla_attention.pt", _torch_file("state", pickles.random_state)),
    ("sla_attention.safetensors", _make_twin),
    ("optimizer.bin", _torch_file("optimizer", pickles.random_optimizer)),
    ("training_state.json", lambda rng: texts.mutate_json(rng, {"global_step": 3, "epoch": 1})),
    ("checkpoint_manifest.json", lambda rng: _make_manifest(rng)),
    ("simpletuner_config.json", _make_run_config),
    ("transformer/config.json", lambda rng: texts.mutate_json(rng, rng.choice(seeds.CONFIGS))),
    ("transformer/diffusion_pytorch_model-00001-of-00003.safetensors", _make_safetensors),
    ("transformer/diffusion_pytorch_model.safetensors.index.json",
     lambda rng: texts.mutate_json(rng, seeds.INDEX)),
    ("model_index.json", lambda rng: texts.mutate_json(
        rng, {"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"], "vae": [None, None]})),
)  # fmt: skip


def _make_checkpoint(rng: Random) -> bytes:
    """One byte says which file of the folder the rest replaces."""
    which = rng.randrange(len(_MAKERS))
    return bytes([which]) + _MAKERS[which][1](rng)


def _read_checkpoint(data: bytes) -> Any:
    _FOLDER.open()
    name = _MAKERS[data[0]][0]
    _FOLDER.put(name, data[1:])
    try:
        report = verify(_FOLDER.root)
    finally:
        _FOLDER.put(name, _FOLDER.tidy[name])
    return report


def _checkpoint_oracle(_data: bytes, report: Any) -> str | None:
    for render in (to_json, to_sarif):
        render([report]).encode()
    for render in (to_text, to_github):
        for line in unstyle(render([report])).splitlines():
            if not line.isprintable() or len(line) > 3000:
                return f"unfit line {line!r:.300}"
    return None


def _make_manifest(rng: Random) -> bytes:
    return texts.mutate_json(rng, seeds.json_seed("out_peft/checkpoint-3/checkpoint_manifest.json"))


def _read_toml(data: bytes) -> Any:
    _FOLDER.open()
    path = _FOLDER.root.parent / "config.toml"
    path.write_bytes(data)
    config = load_run_config(path)
    _use_run_config(config)
    return config


def _optimizer_oracle(data: bytes, structure: OptimizerStructure) -> str | None:
    structure.sla_groups()
    return compare.torch_differs_from_structure(data, structure)


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("state", 40, _torch_file("state", pickles.random_state), _read_state,
               compare.torch_differs_from),
        Target("optimizer", 15, _torch_file("optimizer", pickles.random_optimizer),
               lambda data: read_optimizer(data, name=_NAME), _optimizer_oracle),
        Target("weights", 10, _make_safetensors, _read_safetensors, compare.safetensors_differs),
        Target("twin", 8, _make_twin, lambda data: read_twin(data, name=_NAME), _twin_oracle),
        Target("config", 6, lambda rng: texts.mutate_json(rng, rng.choice(seeds.CONFIGS)), _read_config),
        Target("run-config", 5, _make_run_config, _read_run_config),
        Target("run-config-toml", 1, _make_toml, _read_toml),
        Target("manifest", 4, _make_manifest, _read_manifest, _manifest_oracle),
        Target("index", 4, lambda rng: texts.mutate_json(rng, seeds.INDEX), _read_index),
        Target("card", 5, texts.mutate_card, _read_card, _card_oracle),
        Target("checkpoint", 2, _make_checkpoint, _read_checkpoint, _checkpoint_oracle),
    )
}  # fmt: skip
