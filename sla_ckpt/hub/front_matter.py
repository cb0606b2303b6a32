"""The YAML block at the top of a model card: read, checked, and given tags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sla_ckpt.errors import FormatError

_FRONT_MATTER = re.compile(
    r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_LOCAL_PATH = re.compile(r"/|~|\.{1,2}(?:[/\\]|$)|[A-Za-z]:[\\/]|\\\\|file:")


def newline_of(text: str) -> str:
    """The line end that a text uses."""
    # A lone "\r" at the end would become such a line end with what is appended.
    return "\r\n" if "\r\n" in text or text.endswith("\r") else "\n"


def add_tags(text: str, tags: tuple[str, ...]) -> str:
    """Add tags to the front matter without touching another byte of it.

    The block is edited as text, at the positions that the YAML parser reports.

    Raises:
        FormatError: The block is not a YAML mapping, or its tags are in a form that has no place
            for more.
    """
    newline = newline_of(text)
    match = _FRONT_MATTER.match(text)
    if match is None:
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        lines = ["---", "tags:", *(f"- {tag}" for tag in tags), "---", "", ""]
        return mark + newline.join(lines) + text.removeprefix("\ufeff")
    block = match[1]
    before, present = parse_metadata(block), _tags_of(block)
    missing = [tag for tag in tags if tag not in present]
    if not missing:
        return text
    changed = _insert_tags(block, missing, newline)
    if changed is None or not _reads_as(changed, {**before, "tags": [*present, *missing]}):
        raise FormatError(
            "README.md: its metadata has tags in a form that cannot be extended",
            hint=f"add the tags {', '.join(tags)} yourself, as a YAML list",
            path="README.md",
        )
    return text[: match.start(1)] + changed + text[match.end(1) :]


def _reads_as(block: str, wanted: Mapping[str, object]) -> bool:
    try:
        return repr(parse_metadata(block)) == repr(wanted)  # .nan equals itself in this way
    except FormatError:
        return False


def _insert_tags(block: str, missing: list[str], newline: str) -> str | None:
    """The block with more tags; None when ``tags`` is neither absent, a list nor one word."""
    import yaml

    node = _tags_node(block)
    items = [f"- {tag}" for tag in missing]
    if node is None:
        return block + newline.join(["tags:", *items]) + newline
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.SequenceNode) and node.flow_style:
        last = node.value[-1].end_mark.index if node.value else start + 1
        return block[:last] + (", " if node.value else "") + ", ".join(missing) + block[last:]
    if isinstance(node, yaml.SequenceNode):
        lead = " " * node.start_mark.column
        return _insert_lines(block, node.value[-1].end_mark.index, lead, items, newline)
    if not isinstance(node, yaml.ScalarNode):
        return None
    if node.value:
        items.insert(0, f"- {block[start:end]}")
        block, end = block[:start].rstrip(" ") + block[end:], len(block[:start].rstrip(" "))
    return _insert_lines(block, end, "", items, newline)


def _insert_lines(block: str, after: int, lead: str, lines: list[str], newline: str) -> str:
    """Put lines after the one that holds position ``after``."""
    found = block.find("\n", after)
    at = len(block) if found < 0 else found + 1
    return block[:at] + "".join(lead + line + newline for line in lines) + block[at:]


def _tags_node(block: str) -> Any:
    """The YAML node of the top-level ``tags``; None when there is none."""
    import yaml

    root = yaml.compose(block, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((value for key, value in pairs if getattr(key, "value", None) == "tags"), None)


def _tags_of(block: str) -> list[str]:
    metadata = parse_metadata(block)
    tags = metadata.get("tags")
    if isinstance(tags, str):
        return [tags]
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def parse_metadata(block: str) -> Mapping[str, object]:
    """The YAML of a card's front matter.

    Raises:
        FormatError: Not YAML, or not a mapping.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(block)
        node = loader.get_single_node()
        if node is None:
            return {}
        _check_unfolded(node)
        value = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 2}" if mark is not None else ""
        raise _fault(f"is not YAML{where}") from error
    except _VALUE_ERRORS as error:
        raise _fault("has a value that its tag does not allow") from error
    if not isinstance(value, dict):
        raise _fault("is not a YAML mapping")
    return value


#: What PyYAML lets through when a value does not suit its tag (``!!int x``, ``2026-13-45``).
_VALUE_ERRORS = (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError)
#: Characters of a front matter whose aliases are written out.
_MAX_UNFOLDED = 4_000_000


def _check_unfolded(root: Any) -> None:
    """Refuse aliases that unfold to more than any card holds, or that contain themselves."""
    sizes: dict[int, int] = {}
    opened: set[int] = set()

    def size(node: Any) -> int:
        identity = id(node)
        if identity in opened:
            raise _fault("contains itself")
        if identity not in sizes:
            opened.add(identity)
            parts = node.value if isinstance(node.value, list) else []
            flat = [
                each for part in parts for each in (part if isinstance(part, tuple) else (part,))
            ]
            sizes[identity] = 1 + sum(map(size, flat)) + (0 if flat else len(node.value))
            opened.remove(identity)
        return sizes[identity]

    if size(root) > _MAX_UNFOLDED:
        raise _fault("repeats itself through aliases beyond all measure")


def _fault(message: str) -> FormatError:
    return FormatError(
        f"README.md: its metadata {message}",
        hint="correct the block between the two --- lines",
        path="README.md",
    )


def metadata_of(text: str) -> Mapping[str, object]:
    """The metadata of a whole README; empty when it has none."""
    match = _FRONT_MATTER.match(text)
    return parse_metadata(match[1]) if match else {}


def check_metadata(text: str) -> None:
    """Find, before a byte is sent, what the Hub would refuse or nobody wants published.

    Raises:
        FormatError: A field is empty, or holds a local path; names the field.
    """
    for key, value in metadata_of(text).items():
        if value is None:
            raise FormatError(
                f"README.md: metadata field {key!r} is empty, which the Hub refuses",
                hint=f"give {key} a value between the two --- lines, or delete it",
                path="README.md",
            )
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and _LOCAL_PATH.match(item):
                raise FormatError(
                    f"README.md: metadata field {key!r} holds a local path",
                    hint="put the Hub id (org/model) there, then push again",
                    path="README.md",
                )
