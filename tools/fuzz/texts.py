"""JSON, safetensors and YAML inputs: trees changed first, then their text, then the bytes."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from tools.fuzz import values

_JSON_WORDS = (
    b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"1.0", b"01", b"[", b"]",
    b"{", b"}", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b'"a":1,', b"\xef\xbb\xbf",
    b"\xff",
    b"//x\n", b"/**/", b"'", b"\t", b"\0", b"9" * 4301, b"\x85", b"\xe2\x80\xa8", b'{"a":{"a":1}}',
)  # fmt: skip

TOKENS = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2",
    "I64",
    "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL", "C64", "C128", "f32", "",
)  # fmt: skip
_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8,
          "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1,
          "C64": 8}  # fmt: skip


def json_text(rng: Random, tree: Any) -> bytes:
    """A tree as JSON in one of the ways programs write it."""
    style = rng.randrange(4)
    text = json.dumps(
        tree,
        ensure_ascii=style != 1,
        indent=2 if style == 2 else None,
        separators=(",", ":") if style == 3 else None,
    )
    if style == 1 and rng.random() < 0.1:
        return text.encode("utf-16", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def mutate_json(rng: Random, tree: Any) -> bytes:
    """A changed tree as text, now and then with the text changed too."""
    if rng.random() < 0.85:
        tree = values.mutate_tree(rng, tree)
    data = json_text(rng, tree)
    choice = rng.random()
    if choice < 0.25:
        return values.mutate_bytes(rng, data, _JSON_WORDS)
    if choice < 0.3:
        return _doubled_key(rng, data)
    if choice < 0.31:
        depth = rng.choice((50, 200, 1100, 20_000))
        return data[:-1] + b',"deep":' + b"[" * depth + b"]" * depth + b"}"
    return data


def _doubled_key(rng: Random, data: bytes) -> bytes:
    """The same key twice, with another value first."""
    at = data.find(b'"', rng.randrange(len(data)) if data else 0)
    end = data.find(b'":', at)
    if at < 0 or end < 0 or end - at > 60:
        return data
    return (
        data[:at]
        + data[at : end + 1]
        + b": "
        + json_text(rng, values.scalar(rng))
        + b", "
        + data[at:]
    )


def safetensors(rng: Random, parts: dict[str, tuple[str, tuple[int, ...], bytes]],
                metadata: dict[str, str] | None) -> tuple[dict[str, Any], bytes]:  # fmt: skip
    """Header and body of a sound file."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    body = b""
    for name, (token, shape, raw) in parts.items():
        header[name] = {
            "dtype": token,
            "shape": list(shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    return header, body


def random_parts(rng: Random) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Some small tensors under names like real ones."""
    parts = {}
    for index in range(rng.randrange(0, 5)):
        token = rng.choice(tuple(_WIDTH))
        shape = tuple(rng.choice((0, 1, 2, 3)) for _ in range(rng.randrange(0, 4)))
        size = _WIDTH[token]
        for length in shape:
            size *= length
        name = rng.choice((f"blocks.{index}.weight", values.text(rng), f"{index}:bf16/proj_l.bias"))
        parts[name] = (token, shape, rng.randbytes(size))
    return parts


def mutate_safetensors(rng: Random, header: dict[str, Any], body: bytes) -> bytes:
    """A safetensors file with its header, its length field or its data changed."""
    choice = rng.random()
    if choice < 0.12:
        text = mutate_json(rng, header)
    elif choice < 0.85:
        header = values.mutate_tree(rng, header, fresh=_fresh_header)
        text = json_text(rng, header)
    else:
        text = json_text(rng, header)
    if rng.random() < 0.3:
        text += b" " * rng.choice((1, 7, 8, 64))
    if rng.random() < 0.15:
        body = rng.choice((body[:-1], body + b"\0", body[: len(body) // 2], b"", body * 2))
    length = len(text)
    if rng.random() < 0.08:
        length = rng.choice((length + 1, length - 1, 0, 1, values.integer(rng))) % (1 << 64)
    data = struct.pack("<Q", length) + text + body
    return values.mutate_bytes(rng, data, _JSON_WORDS) if rng.random() < 0.12 else data


def _fresh_header(rng: Random) -> Any:
    choice = rng.random()
    if choice < 0.3:
        return rng.choice(TOKENS)
    if choice < 0.6:
        return [values.small(rng) for _ in range(rng.choice((0, 1, 2, 2, 2, 3, 70)))]
    if choice < 0.8:
        return {
            "dtype": rng.choice(TOKENS),
            "shape": [values.small(rng)],
            "data_offsets": [0, values.small(rng)],
        }
    return values.tree(rng)


_YAML_VALUES = (
    "mit", "null", "~", "", "true", "yes", "off", "1", "0x1f", "0o17", "0b2", "1_000", "1:30",
    "190:20:30",
    ".inf", ".nan", "1e3", "2026-01-01", "2026-13-45", "2026-01-01 25:61:61",
    "2026-01-01T00:00:00Z",
    "2026-01-01 00:00:00 +99:99", "0000-00-00", "=", "<<", "!!int ''", "!!int x", "!!float ''",
    "!!float x",
    "!!bool x", "!!timestamp x", "!!binary x", "!!binary é", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!python/object/apply:os.system [id]", "!!python/name:os.system", "!x y", "!<tag:x> y", "*a",
    "&a x",
    "&a [*a]", "&a {k: *a}", "[a, b", "{a: b", "{a, b: c}", "[[[]]]", "{[a]: b}", "{{a: 1}: b}",
    "? a", "- a",
    "|\n  text\n  more", ">-\n  folded", "'it''s'", '"a\\x00b"', '"\\ud800"', '"\\U00110000"',
    '"open', "@x", "`x",
    "%x", "# c", "a # c", "a: b", "a: b: c", "/home/me/x", "C:\\x", "../x", "~/x", "org/model", "é",
    "\u2028",
    "\x85", "\x07", "\ufeff", "\ud800", "\U0001f600", "9" * 5000, "-" * 300, "--- a", "...",
    "[" * 300,
    "x" * 2000, "1" * 100 + ":1", "+12e03", "-.5", "!!str", "!!null x", "!!seq x", "!!map x", "0o8",
    "08",
)  # fmt: skip
_YAML_KEYS = (
    "tags", "license", "base_model", "language", "library_name", "pipeline_tag", "model-index",
    "widget",
    "tags ", '"tags"', "'tags'", "? tags", "!!str tags", "&k tags", "TAGS", "<<", "[a]", "{a: b}",
    "1", "null", "",
)  # fmt: skip
_TAG_VALUES = (
    "[flux]", "[]", "flux", "", "[flux, sla]", "['a', \"b\"]", "[a: b]", "{a: b}", "[flux,]",
    "[flux, # c\n  x]",
    "\n- flux", "\n  - flux\n  - x", "\n- sla\n- sparse-linear-attention", "\n-\n- x", "\n- - a",
    "\n- a: b\n  c: d",
    "\n- |\n  text", "\n- flux # c", "!!seq [a]", "&t [a]", "*t", "|\n  a", "'a'", '"a"', "a b",
    "1", "[1, 2.5, null]",
    "\n# c\n- a", "[[a]]", "\n- a\n\n- b\n", "\n- &x a\n- *x", ">\n  a\n", "[\n a,\n b\n ]",
    "!!set {a}", "\n- 'a\n  b'",
)  # fmt: skip


def random_card(rng: Random) -> str:
    """A README whose front matter is anything from tidy to hostile."""
    lines = []
    for _ in range(rng.randrange(0, 6)):
        key = rng.choice(_YAML_KEYS) if rng.random() < 0.8 else values.text(rng)
        value = rng.choice(_TAG_VALUES if "tags" in key and rng.random() < 0.7 else _YAML_VALUES)
        lines.append(f"{key}: {value}" if rng.random() < 0.95 else value)
    if rng.random() < 0.06:
        lines += _laughs(rng)
    block = "\n".join(lines) + ("\n" if lines else "")
    fence = rng.choice(("---\n",) * 8 + ("--- \n", "----\n", "---", " ---\n"))
    body = rng.choice(
        ("# Model\n", "", "text\n\n---\n\nmore\n", "<!-- sla-ckpt: end -->\n", "no end")
    )
    card = rng.choice(("", "", "", "", "", "\ufeff", "\n")) + fence + block + fence + body
    return card.replace("\n", "\r\n") if rng.random() < 0.15 else card


def _laughs(rng: Random) -> list[str]:
    """Aliases that unfold to more than any memory holds."""
    width, depth = rng.choice(((2, 5), (2, 40), (9, 9), (9, 30)))
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return [*lines, f"{rng.choice(('tags', 'x'))}: *a{depth - 1}"]


def mutate_card(rng: Random) -> bytes:
    text = random_card(rng)
    data = text.encode("utf-8", "surrogatepass")
    words = tuple(word.encode("utf-8", "surrogatepass") for word in _YAML_VALUES[:60])
    return values.mutate_bytes(rng, data, words) if rng.random() < 0.3 else data
