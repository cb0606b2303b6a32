"""JSON by strangers costs no more than its size deserves."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from sla_ckpt.checkpoint.jsonio import parse_json
from sla_ckpt.errors import FormatError


def test_megabytes_of_brackets_are_refused_before_they_are_parsed() -> None:
    data = b'{"a": [' + b'{"b": [[]]},' * 200_000 + b"1]}"
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="brackets"):
            parse_json(data, name="config.json")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_index_of_a_very_large_model_is_read() -> None:
    index = {"weight_map": {f"blocks.{n}.weight": "model-00001.safetensors" for n in range(40_000)}}
    data = json.dumps(index).encode()
    assert len(data) > 1 << 20
    assert parse_json(data, name="index.json") == index


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(FormatError, match="half a character"):
        parse_json(rb'{"a": "\ud800"}', name="config.json")
    assert parse_json(rb'{"a": "\ud83d\ude00"}', name="config.json") == {"a": "\U0001f600"}
