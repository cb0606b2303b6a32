"""Reading model configs (``config.json``) without trusting them.

Every accessor gives a checked value or one :class:`UsageError` that names the class, the entry
and what is wrong with it. A missing entry takes the default that the diffusers class has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sla_ckpt.errors import UsageError
from sla_ckpt.pairs.defaults import CLASS_DEFAULTS
from sla_ckpt.state import MAX_HEAD_DIM
from sla_ckpt.text import short_repr

#: Larger values than any model has; beyond them a config is nonsense, not a big model.
MAX_WIDTH = 1 << 22
MAX_ENTRIES = 256


def config_class_name(config: Mapping[str, Any]) -> str | None:
    """``_class_name`` of a config if it is a usable string."""
    name = config.get("_class_name")
    return name if isinstance(name, str) and name else None


class ConfigReader:
    """Checked access to one model config.

    Args:
        config: Parsed ``config.json``.
        class_name: Class whose defaults fill missing entries.
    """

    def __init__(self, config: Mapping[str, Any], class_name: str) -> None:
        self.class_name = class_name
        self._config = config
        self._defaults = CLASS_DEFAULTS.get(class_name, {})

    def get(self, key: str) -> Any:
        """The raw entry, or the class's default; None when there is neither."""
        if key in self._config:
            return self._config[key]
        return self._defaults.get(key)

    def positive_int(self, key: str, *, limit: int = MAX_WIDTH) -> int:
        """An entry that must be a whole number in [1, limit].

        Raises:
            UsageError: It is something else.
        """
        return self._checked(key, self.get(key), limit)

    def optional_int(self, key: str, *, limit: int = MAX_WIDTH) -> int | None:
        value = self.get(key)
        return None if value is None else self._checked(key, value, limit)

    def head_dim(self, key: str = "attention_head_dim") -> int:
        """An entry that is a head_dim itself."""
        return self.positive_int(key, limit=MAX_HEAD_DIM)

    def quotient(self, width_key: str, heads_key: str) -> int:
        """head_dim as width / heads, where heads must divide the width.

        Raises:
            UsageError: Either entry is malformed or heads does not divide the width.
        """
        width, heads = self.positive_int(width_key), self.positive_int(heads_key)
        if width % heads:
            raise self.error(f"{width_key} {width} is not a multiple of {heads_key} {heads}")
        return self._in_head_range(f"{width_key}/{heads_key}", width // heads)

    def int_tuple(self, key: str) -> tuple[int, ...]:
        """A non-empty list of positive whole numbers."""
        return tuple(
            self._checked(f"{key}[{i}]", item, MAX_WIDTH) for i, item in enumerate(self.items(key))
        )

    def str_tuple(self, key: str) -> tuple[str, ...]:
        items = self.items(key)
        if not all(isinstance(item, str) for item in items):
            raise self.error(f"{key} is {short_repr(items, limit=40)}, not a list of strings")
        return tuple(items)

    def per_block(self, key: str, blocks: int) -> tuple[Any, ...]:
        """One entry per block: a list of that length, or one value for all blocks."""
        value = self.get(key)
        if not isinstance(value, list | tuple):
            return (value,) * blocks
        if len(value) != blocks:
            raise self.error(f"{key} has {len(value)} entries for {blocks} blocks")
        return tuple(value)

    def items(self, key: str) -> tuple[Any, ...]:
        value = self.get(key)
        if not isinstance(value, list | tuple) or not value:
            raise self.error(f"{key} is {short_repr(value, limit=40)}, not a list")
        if len(value) > MAX_ENTRIES:
            raise self.error(f"{key} has {len(value)} entries, more than {MAX_ENTRIES}")
        return tuple(value)

    def check_int(self, key: str, value: Any, *, limit: int = MAX_WIDTH) -> int:
        """Check a value that came out of a list under ``key``."""
        return self._checked(key, value, limit)

    def check_head_dim(self, what: str, value: int) -> int:
        return self._in_head_range(what, value)

    def error(self, problem: str) -> UsageError:
        return UsageError(
            f"config.json of {self.class_name}: {problem}",
            hint="repair config.json, or name the pairs: --expect 128:bf16",
        )

    def _checked(self, key: str, value: Any, limit: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{key} is {short_repr(value, limit=40)}, not a whole number")
        if not 1 <= value <= limit:
            raise self.error(f"{key} is {short_repr(value, limit=40)}, outside 1 to {limit}")
        return value

    def _in_head_range(self, what: str, value: int) -> int:
        if not 1 <= value <= MAX_HEAD_DIM:
            raise self.error(f"{what} gives head_dim {value}, outside 1 to {MAX_HEAD_DIM}")
        return value
