"""Everything the rules look at, read once and lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sla_ckpt.checkpoint.layout import Checkpoint, Component, discover
from sla_ckpt.checkpoint.runconfig import RunConfig, find_run_config, load_run_config
from sla_ckpt.checkpoint.source import LocalSource, Source
from sla_ckpt.checkpoint.weights import dominant_dtype, read_header_of
from sla_ckpt.checks.entries import Entry, parse_entries, twin_as_body
from sla_ckpt.checks.expectation import Expectation, expect
from sla_ckpt.errors import FormatError, SlaCkptError, TargetNotFoundError
from sla_ckpt.state import TWIN_FILE, PairKey, SLASettings, SLAState
from sla_ckpt.text import quoted

if TYPE_CHECKING:
    from sla_ckpt.formats.optimizer import OptimizerStructure
    from sla_ckpt.formats.payload import StatePayload
    from sla_ckpt.formats.safetensors_header import SafetensorsHeader

#: Far above any real state (SimpleTuner's largest is 1 MB); bounds what is read from a repo.
MAX_STATE_BYTES = 256 * 1024 * 1024

Purpose = Literal["resume", "inference"]


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        select: Rule codes or prefixes to run; all when empty.
        ignore: Rule codes or prefixes to leave out.
        deep: Read every weight and look for NaN and Inf (SLA307).
        tokens: Attention tokens the model will run at, for SLA105.
        resolution: Pixels (width, height) to compute the tokens from.
        expect: Pairs the model materialises, when they cannot be derived.
        purpose: ``"resume"`` raises what a resume trips over to errors, ``"inference"`` leaves
            training state out; None warns.
        config: The trainer's configuration file.
        base_model: Folder of the base model of an adapter, for its config.json.
        against: Local checkpoint that a repository's state must equal (SLA402).
        token: Hub token for remote targets; by default the user's. Never shown.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    deep: bool = False
    tokens: int | None = None
    resolution: tuple[int, int] | None = None
    expect: tuple[PairKey, ...] = ()
    purpose: Purpose | None = None
    config: Path | None = None
    base_model: Path | None = None
    against: Path | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(eq=False)
class Context:
    """What one verification knows about its target.

    Args:
        source: The target.
        options: How to verify.
    """

    source: Source
    options: VerifyOptions = field(default_factory=VerifyOptions)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return discover(self.source)

    @property
    def target(self) -> str:
        """The target as it is typed on a command line, for hints that name a command."""
        return quoted(self.source.label)

    @property
    def state_path(self) -> str:
        """The file that messages about the state name."""
        if self.checkpoint.state_path is None and self.twin is not None:
            return self.checkpoint.twin_path or TWIN_FILE
        return self.checkpoint.expected_state_path

    @property
    def is_bare_twin(self) -> bool:
        """Whether the target is a twin file by itself, which then is the whole matter."""
        return list(self.source.files()) == [TWIN_FILE] and self.checkpoint.twin_path is not None

    @cached_property
    def _payload(self) -> StatePayload | FormatError | None:
        path = self.checkpoint.state_path
        if path is None:
            return None
        size = self.source.files()[path]
        if size > MAX_STATE_BYTES:
            return FormatError(
                f"{path} is {size:,} bytes; a state is at most {MAX_STATE_BYTES:,}",
                kind="too-large",
                path=path,
            )
        from sla_ckpt.formats.simpletuner import read_payload

        try:
            return read_payload(self.source.read(path), name=path)
        except FormatError as error:
            return error

    @property
    def payload(self) -> StatePayload | None:
        """The state file as read, None when absent or unreadable."""
        return None if isinstance(self._payload, FormatError) else self._payload

    @property
    def payload_fault(self) -> FormatError | None:
        """Why the state file cannot be read."""
        return self._payload if isinstance(self._payload, FormatError) else None

    @cached_property
    def body(self) -> Mapping[Any, Any] | None:
        """The payload's top-level dict; without a state file, the twin in the same form."""
        if self.payload is not None:
            return self.payload.value if isinstance(self.payload.value, dict) else None
        if self.checkpoint.state_path is None and self.twin is not None:
            return twin_as_body(self.twin)
        return None

    @property
    def raw_settings(self) -> Mapping[Any, Any] | None:
        value = self.body.get("settings") if self.body else None
        return value if isinstance(value, dict) else None

    @cached_property
    def settings(self) -> SLASettings | None:
        """Settings with defaults filled in; None when there are none or they are malformed."""
        if self.raw_settings is None:
            return None
        try:
            return SLASettings.from_mapping(self.raw_settings)
        except FormatError:
            return None

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The state's entries, each judged on its own; empty when there is no state."""
        value = self.body.get("state") if self.body else None
        return parse_entries(value) if isinstance(value, dict) else ()

    @cached_property
    def found(self) -> tuple[PairKey, ...]:
        """Pairs in the file whose key can be read, in the file's order."""
        return tuple(entry.key for entry in self.entries if entry.key is not None)

    @cached_property
    def _twin(self) -> SLAState | FormatError | None:
        path = self.checkpoint.twin_path
        if path is None:
            return None
        if self.source.files()[path] > MAX_STATE_BYTES:
            return FormatError(f"{path} is too large for a state", kind="too-large", path=path)
        from sla_ckpt.formats.twin import read_twin

        try:
            return read_twin(self.source.read(path), name=path)
        except FormatError as error:
            return error

    @property
    def twin(self) -> SLAState | None:
        return None if isinstance(self._twin, FormatError) else self._twin

    @property
    def twin_fault(self) -> FormatError | None:
        return self._twin if isinstance(self._twin, FormatError) else None

    @property
    def origin(self) -> Mapping[str, str]:
        """Where the state came from, as far as the twin says."""
        return self.twin.origin if self.twin else {}

    @cached_property
    def _run_config(self) -> tuple[RunConfig | None, str | None]:
        if self.options.config is not None:
            return load_run_config(self.options.config), None
        return find_run_config(self.source)

    @property
    def run_config(self) -> RunConfig | None:
        """The training configuration: the one named, else the one uploaded with the model."""
        return self._run_config[0]

    @property
    def run_config_fault(self) -> str | None:
        return self._run_config[1]

    @cached_property
    def headers(self) -> Mapping[str, SafetensorsHeader | FormatError]:
        """Every safetensors weight file of the checkpoint: its header, or why it has none."""
        paths = [path for item in self.checkpoint.components for path in item.weights.safetensors]
        if self.checkpoint.adapter_path is not None:
            paths.append(self.checkpoint.adapter_path)
        results: dict[str, SafetensorsHeader | FormatError] = {}
        for path in paths:
            try:
                results[path] = read_header_of(self.source, path)
            except TargetNotFoundError:
                raise
            except FormatError as error:
                results[path] = error
        return results

    @cached_property
    def optimizers(self) -> Mapping[str, OptimizerStructure | FormatError | None]:
        """The groups of each optimizer file, or why it cannot be read; None for repositories.

        Only the pickle is read, so a file of 20 GB costs milliseconds.
        """
        from sla_ckpt.formats.optimizer import read_optimizer

        found: dict[str, OptimizerStructure | FormatError | None] = {}
        for path in self.checkpoint.optimizer_files:
            found[path] = None
            if isinstance(self.source, LocalSource):
                try:
                    found[path] = read_optimizer(self.source.local_path(path), name=path)
                except FormatError as error:
                    found[path] = error
        return found

    def good_headers(self, component: Component) -> dict[str, SafetensorsHeader]:
        """The readable headers of one component."""
        found: dict[str, SafetensorsHeader] = {}
        for path in component.weights.safetensors:
            header = self.headers[path]
            if not isinstance(header, FormatError):
                found[path] = header
        return found

    @cached_property
    def compute_dtype(self) -> str | None:
        """Dtype token of the queries, where it can be known.

        From the run's configuration, else from the weights. float32 weights run under bf16 or
        fp16 autocast, which they do not tell, and an adapter's own dtype says nothing about its
        base: None then.
        """
        if self.run_config is not None and (token := self.run_config.compute_dtype):
            return token
        denoiser = self.checkpoint.denoiser
        if denoiser is None:
            return None
        plain = denoiser.weights.plain_files
        headers = self.good_headers(denoiser)
        token = dominant_dtype({path: headers[path] for path in plain if path in headers})
        return token if token in ("bf16", "fp16") else None

    @cached_property
    def model_config(self) -> Mapping[str, Any] | None:
        """config.json of the denoiser: the checkpoint's own, else the named base model's."""
        if self.checkpoint.denoiser is not None and self.checkpoint.denoiser.config is not None:
            return self.checkpoint.denoiser.config
        if self.options.base_model is not None:
            return _base_model_config(self.options.base_model)
        return None

    @cached_property
    def expectation(self) -> Expectation:
        """Which pairs this model materialises."""
        return expect(self)

    @cached_property
    def tokens(self) -> tuple[int, str] | None:
        """Attention tokens the model runs at and how that is known; None when it is not."""
        from sla_ckpt.checks.expectation import tokens_of

        return tokens_of(self)


def _base_model_config(path: Path) -> Mapping[str, Any]:
    from sla_ckpt.errors import UsageError

    try:
        denoiser = discover(LocalSource(path)).denoiser
    except SlaCkptError as error:
        raise UsageError(
            f"--base-model: {error.message}", hint="name the base model's local folder"
        ) from error
    if denoiser is None or denoiser.config is None:
        raise UsageError(
            f"--base-model {path} has no transformer/config.json or unet/config.json",
            hint="name the folder of the base model in diffusers format",
        )
    return denoiser.config
