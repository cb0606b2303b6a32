"""Interesting values, and mutations of bytes, text and trees that know nothing of a format."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

INTEGERS = (
    0, 1, -1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 65535, 65536,
    (1 << 24) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, (1 << 62),
    (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 31), -(1 << 63), -(1 << 63) - 1,
    1 << 200,
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.2, 1.0, -1.0, 1e-320, 1e308, 1.5, 64.0, 1e30)
FLOATS_SPECIAL = (float("inf"), float("-inf"), float("nan"))
#: Words that some reader takes for more than text.
TEXTS = (
    "", "a", "0", "1", "state", "settings", "version", "proj_l.weight", "proj_l.bias", "topk",
    "feature_map", "blkq", "blkk", "tie_feature_map_qk", "softmax", "elu", "relu", "hedgehog",
    "128:bf16", "64:fp16", "1:fp32", "0:bf16", "-1:bf16", "128:bfloat16", "128", "128:", ":bf16",
    "99999999999:bf16", "١٢٨:bf16", "128:float8_e4m3fn", "params", "param_groups", "lr",
    "initial_lr", "exp_avg", "step", "storage", "cpu", "cuda:0", "meta", "latin1", "../x", "..",
    "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "a\rb", "\x1b[31m", "\u202e", "é", "é", "K",
    "ſ", "\U0001f600", "nan", "true", "null", "~", "NaN", "1e999", "0x10", "__class__", "<<",
    "float32", "F32", "bf16", "x" * 300, "sla", "transformer", "weight_map", "__metadata__",
)  # fmt: skip

Edit = Callable[[Random, bytearray, Sequence[bytes]], None]


def integer(rng: Random) -> int:
    choice = rng.random()
    if choice < 0.5:
        return rng.choice(INTEGERS)
    if choice < 0.8:
        return rng.randrange(0, 300)
    return rng.choice(INTEGERS) + rng.randrange(-2, 3)


def small(rng: Random) -> int:
    """Mostly what a size or count really is."""
    return rng.randrange(0, 9) if rng.random() < 0.8 else integer(rng)


def text(rng: Random) -> str:
    if rng.random() < 0.85:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(1, 0x250))))
                   for _ in range(rng.randrange(1, 12)))  # fmt: skip


def number(rng: Random) -> float:
    return rng.choice(FLOATS + FLOATS_SPECIAL) if rng.random() < 0.7 else rng.uniform(-2, 2)


def scalar(rng: Random) -> Any:
    return rng.choice(
        (None, True, False, integer(rng), number(rng), text(rng), integer(rng), text(rng))
    )


def tree(rng: Random, depth: int = 0) -> Any:
    """A small random value of dicts, lists and scalars."""
    kind = rng.random()
    if depth > 3 or kind < 0.55:
        return scalar(rng)
    if kind < 0.75:
        return [tree(rng, depth + 1) for _ in range(rng.randrange(0, 4))]
    return {text(rng): tree(rng, depth + 1) for _ in range(rng.randrange(0, 4))}


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every node below the root."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending and len(found) < 2000:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                pending.append(node[key])
    return found


def mutate_tree(
    rng: Random, value: Any, *, fresh: Callable[[Random], Any] = tree, edits: int | None = None
) -> Any:
    """A copy of a tree of dicts and lists with a few nodes changed.

    Args:
        rng: Randomness.
        value: The root.
        fresh: Makes a new node.
        edits: How many changes; few by default.
    """
    result = copy.deepcopy(value)
    for _ in range(edits or rng.choice((1, 1, 1, 2, 3, 5))):
        nodes = _nodes(result) if isinstance(result, dict | list) else []
        if not nodes or rng.random() < 0.02:
            result = fresh(rng)
            continue
        holder, key = rng.choice(nodes)
        _edit_node(rng, holder, key, nodes, fresh)
    return result


def _edit_node(
    rng: Random, holder: Any, key: Any, nodes: list[tuple[Any, Any]], fresh: Callable[[Random], Any]
) -> None:
    old = holder[key]
    action = rng.randrange(10)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        del holder[key]
        holder[text(rng)] = old
    elif action == 2:
        other, other_key = rng.choice(nodes)
        if other_key in other if isinstance(other, dict) else other_key < len(other):
            holder[key] = copy.deepcopy(other[other_key])
    elif action == 3:
        for _ in range(rng.choice((1, 2, 30, 70, 200))):
            old = [old] if rng.random() < 0.5 else {text(rng): old}
        holder[key] = old
    elif action == 4 and isinstance(holder, list) and len(nodes) < 500:
        holder.extend([old] * rng.choice((1, 2, 100)))
    elif action == 5 and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = _near(rng, old)
    elif action == 6 and isinstance(old, str):
        holder[key] = _edit_text(rng, old)
    elif action == 7 and isinstance(holder, dict):
        holder[text(rng)] = fresh(rng)
    elif action == 8:
        holder[key] = scalar(rng)
    else:
        holder[key] = fresh(rng)


def _near(rng: Random, value: float) -> float:
    return rng.choice((value + 1, value - 1, -value, value * 2, integer(rng), float(value)))


def _edit_text(rng: Random, value: str) -> str:
    at = rng.randrange(0, len(value) + 1)
    return rng.choice(
        (
            value + text(rng),
            value[:at] + text(rng) + value[at:],
            value[:at],
            value.upper(),
            text(rng),
        )
    )


def mutate_bytes(
    rng: Random, data: bytes, words: Sequence[bytes] = (), *, edits: int | None = None
) -> bytes:
    """A few small edits anywhere: what a damaged disk or a careless editor leaves."""
    result = bytearray(data)
    for _ in range(edits or rng.choice((1, 1, 1, 2, 3, 6))):
        if not result:
            result += rng.randbytes(rng.randrange(1, 20))
            continue
        _edit_bytes(rng, result, words)
    return bytes(result)


def _edit_bytes(rng: Random, data: bytearray, words: Sequence[bytes]) -> None:
    at = rng.randrange(len(data))
    length = rng.choice((1, 1, 2, 4, 8, 16))
    action = rng.randrange(9)
    if action == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif action == 1:
        data[at] = rng.choice((0, 1, 0x10, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif action == 2:
        del data[at : at + length]
    elif action == 3:
        data[at:at] = rng.randbytes(length)
    elif action == 4:
        other = rng.randrange(len(data))
        data[at : at + length] = data[other : other + length]
    elif action == 5:
        size = rng.choice((2, 4, 8))
        value = integer(rng) % (1 << (8 * size))
        data[at : at + size] = value.to_bytes(size, "little")
    elif action == 6 and words:
        word = rng.choice(words)
        data[at : at + rng.choice((0, len(word)))] = word
    elif action == 7 and rng.random() < 0.3:
        del data[at:]
    else:
        other = rng.randrange(len(data))
        start, end = sorted((at, other))
        end = min(end, start + 64)
        data[at:at] = data[start:end]
