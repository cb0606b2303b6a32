"""What a training configuration says about SLA.

Sources: SimpleTuner's ``config.json`` (keys may carry a leading ``--``), its TOML form, and the
``simpletuner_config.json`` it writes into uploads.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.jsonio import parse_json
from sla_ckpt.checkpoint.source import Source
from sla_ckpt.errors import FormatError, SlaCkptError, TargetNotFoundError, UsageError
from sla_ckpt.quiet import without_warnings
from sla_ckpt.state import SLASettings

UPLOADED_CONFIG = "simpletuner_config.json"
MAX_CONFIG_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class RunConfig:
    """A training configuration, keys without leading dashes.

    Attributes:
        path: Where it was read, for messages.
        values: Everything in it.
    """

    path: str
    values: Mapping[str, Any]

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def attention_mechanism(self) -> str | None:
        return self.text("attention_mechanism")

    @property
    def optimizer(self) -> str | None:
        return self.text("optimizer")

    @property
    def compute_dtype(self) -> str | None:
        """The dtype token that queries have in this run, where the config tells."""
        names = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}
        for key in ("weight_dtype", "mixed_precision"):
            value = self.text(key)
            if value and (token := names.get(value.lower().removeprefix("torch."))):
                return token
        return None

    @property
    def resolution(self) -> tuple[int, int] | None:
        """Training resolution in pixels (width, height), when it is given in pixels."""
        for key in ("validation_resolution", "resolution"):
            pixels = parse_resolution(str(self.values.get(key, "")).split(",")[0])
            if pixels and min(pixels) >= 64:  # smaller numbers are megapixels
                return pixels
        return None

    def sla_settings(self) -> SLASettings | None:
        """The settings this run uses: ``sla_config`` over the defaults; None when not SLA.

        Raises:
            FormatError: ``sla_config`` is neither a dict nor text that holds one.
        """
        if (self.attention_mechanism or "").lower() != "sla":
            return None
        return SLASettings.from_mapping(parse_sla_config(self.values.get("sla_config")))


def parse_resolution(text: str) -> tuple[int, int] | None:
    """``"1024x768"`` or ``"1024"`` -> (width, height); None when it is neither."""
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*[xX×]\s*(\d{1,6}))?\s*", text)
    if not match:
        return None
    width = int(match[1])
    height = int(match[2]) if match[2] else width
    return (width, height) if width and height else None


def parse_sla_config(value: object) -> Mapping[str, Any]:
    """``sla_config`` as a dict: a dict, JSON text, a Python dict literal, or nothing.

    Raises:
        FormatError: Anything else.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and len(value) < 100_000:
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            try:
                with without_warnings():
                    parsed = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise FormatError(
                    f"sla_config {value[:60]!r} is neither JSON nor a Python dict",
                    hint='write it as {"topk": 0.2, "blkq": 64, "blkk": 64}',
                ) from error
        if parsed is None:
            return {}
        if isinstance(parsed, dict) and all(isinstance(key, str) for key in parsed):
            return parsed
    raise FormatError(f"sla_config is {type(value).__name__} and not a dict of settings")


def load_run_config(path: Path) -> RunConfig:
    """Read a configuration the user named.

    Raises:
        UsageError: Absent, or neither JSON nor TOML.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read --config {path}: {error.strerror or error}",
            hint="name the trainer's config.json",
        ) from error
    try:
        return RunConfig(str(path), _parse(data, str(path), toml=path.suffix == ".toml"))
    except FormatError as error:
        raise UsageError(error.message, hint="name the trainer's config.json") from error


def find_run_config(source: Source) -> tuple[RunConfig | None, str | None]:
    """The uploaded configuration inside a checkpoint, and what is wrong with it, if anything."""
    if UPLOADED_CONFIG not in source.files():
        return None, None
    try:
        data = source.read(UPLOADED_CONFIG, 0, MAX_CONFIG_BYTES + 1)
        return RunConfig(UPLOADED_CONFIG, _parse(data, UPLOADED_CONFIG)), None
    except TargetNotFoundError:
        raise
    except SlaCkptError as error:
        return None, error.message


def _parse(data: bytes, name: str, *, toml: bool = False) -> Mapping[str, Any]:
    if len(data) > MAX_CONFIG_BYTES:
        raise FormatError(f"{name} is too large for a configuration ({len(data):,} bytes)")
    if toml:
        try:
            parsed: Any = tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{name} is not TOML: {error}") from error
    else:
        parsed = parse_json(data, name=name)
    if not isinstance(parsed, dict):
        raise FormatError(f"{name} holds {type(parsed).__name__}, not an object")
    return {str(key).lstrip("-").replace("-", "_"): value for key, value in parsed.items()}
