"""The files with tensors: how inputs are made, our readers, and what must hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import numpy as np

from sla_ckpt.errors import SlaCkptError
from sla_ckpt.formats.optimizer import OptimizerStructure, read_optimizer
from sla_ckpt.formats.payload import StatePayload
from sla_ckpt.formats.safetensors_header import SafetensorsHeader, read_header
from sla_ckpt.formats.simpletuner import payload_to_state, read_payload
from sla_ckpt.formats.twin import TOKEN_OF, encode_twin, read_twin
from sla_ckpt.state import PairKey, ProjectionTensors, SLASettings, SLAState
from tools.fuzz import compare, pickle_ops, pickles, seeds, texts, values, zips

NAME = "x"


def torch_file(
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
            stream = pickle_ops.mutate_ops(rng, ops, [donor for donor, _ in opcodes])
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
            stream, storages = pickle_ops.random_ops(rng), {"0": bytes(16)}
        archive = zips.torch_archive(stream, storages)
        return zips.build(zips.mutate(rng, archive) if rng.random() < 0.05 else archive)

    return make


def read_state(data: bytes) -> StatePayload:
    payload = read_payload(data, name=NAME)
    try:
        state = payload_to_state(payload, name=NAME)
    except SlaCkptError as error:
        check_error(error)
        return payload
    dtypes = {
        each for pair in state.pairs.values() for each in (pair.weight_dtype, pair.bias_dtype)
    }
    if dtypes <= TOKEN_OF.keys():  # safetensors has no complex128
        back = read_twin(encode_twin(state, pt_sha256=payload.sha256), name=NAME)
        assert back.equals(state), "the twin of a clean state reads back differently"
    return payload


def check_error(error: SlaCkptError) -> None:
    """What every message promises: one printable line of bounded length, and a next step."""
    for text in (error.message, error.hint):
        if text is not None:
            assert text and text.isprintable() and len(text) < 2000, f"unfit message {text!r:.300}"


def read_optimizer_file(data: bytes) -> OptimizerStructure:
    return read_optimizer(data, name=NAME)


def optimizer_oracle(data: bytes, structure: OptimizerStructure) -> str | None:
    structure.sla_groups()
    return compare.torch_differs_from_structure(data, structure)


def read_safetensors(data: bytes) -> SafetensorsHeader:
    return read_header(lambda start, length: data[start : start + length], len(data), name=NAME)


def make_safetensors(rng: Random) -> bytes:
    if rng.random() < 0.4:
        header, body = rng.choice(seeds.safetensors_seeds())
    else:
        metadata = rng.choice(
            (None, {}, {"format": "pt"}, {"modelspec.architecture": "flux-1-dev/lora"})
        )
        header, body = texts.safetensors(rng, texts.random_parts(rng), metadata)
    return texts.mutate_safetensors(rng, header, body)


def twin_state(rng: Random) -> SLAState:
    pairs = {}
    for _ in range(rng.randrange(0, 3)):
        dim = rng.choice((1, 2, 3))
        weight = np.full((dim, dim), 0.5, np.float32)
        key = PairKey(dim, rng.choice(("bf16", "fp16", "fp32")))
        pairs[key] = ProjectionTensors(weight, np.zeros(dim, np.float32))
    return SLAState(pairs, rng.choice((SLASettings(), None)), origin={"tool": "sla-ckpt"})


def make_twin(rng: Random) -> bytes:
    data = encode_twin(twin_state(rng), pt_sha256="0" * 64)
    length = int.from_bytes(data[:8], "little")
    return texts.mutate_safetensors(rng, json.loads(data[8 : 8 + length]), data[8 + length :])


def read_twin_file(data: bytes) -> SLAState:
    return read_twin(data, name=NAME)


def twin_oracle(data: bytes, state: SLAState) -> str | None:
    again = read_twin(encode_twin(state, pt_sha256="0" * 64), name=NAME)
    if not again.equals(state) or again.origin != state.origin:
        return "written again it reads back differently"
    return compare.safetensors_differs(data, read_safetensors(data))
