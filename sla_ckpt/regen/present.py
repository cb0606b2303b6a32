"""What the checkpoint has before regeneration: the old state, if it can be read, and settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sla_ckpt.checkpoint.layout import discover
from sla_ckpt.checkpoint.runconfig import RunConfig, find_run_config, load_run_config
from sla_ckpt.checkpoint.source import LocalSource
from sla_ckpt.errors import SlaCkptError, TargetNotFoundError
from sla_ckpt.formats.simpletuner import read_state
from sla_ckpt.formats.twin import read_twin
from sla_ckpt.regen.options import RegenOptions
from sla_ckpt.state import STATE_FILE, SLASettings, SLAState


@dataclass(frozen=True)
class Present:
    """The old state.

    Attributes:
        state: None when there is none, or it cannot be read.
        variant: Which SLA made it, where the twin records that.
        warnings: Why it cannot be used.
    """

    state: SLAState | None = None
    variant: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether any of its projections is not zero."""
        return self.state is not None and any(not p.is_zero for p in self.state.pairs.values())


def read_present(directory: Path) -> Present:
    """Read what is there; a file that cannot be read counts as none, with a warning."""
    checkpoint = discover(LocalSource(directory))
    twin = _read_twin(directory, checkpoint.twin_path)
    if checkpoint.state_path is None:
        if twin is None:
            return Present()
        return Present(
            variant=twin.origin.get("sla_variant"),
            warnings=(
                f"{checkpoint.twin_path} holds a state although {STATE_FILE} is gone; "
                "sla-ckpt migrate brings it back as it was, without training",
            ),
        )
    try:
        state = read_state(directory / checkpoint.state_path)
    except SlaCkptError as error:
        return Present(
            warnings=(f"the old {checkpoint.state_path} cannot be used: {error.message}",)
        )
    variant = twin.origin.get("sla_variant") if twin is not None and twin.equals(state) else None
    return Present(state, variant)


def _read_twin(directory: Path, path: str | None) -> SLAState | None:
    if path is None:
        return None
    try:
        return read_twin(directory / path)
    except SlaCkptError:
        return None


def choose_settings(
    directory: Path, present: Present, options: RegenOptions
) -> tuple[SLASettings, str]:
    """The settings to run with, and where they come from.

    The options win, then the old file, then the run's configuration, then the defaults.

    Raises:
        UsageError: The configuration that the user named cannot be read.
        FormatError: Its ``sla_config`` cannot be.
    """
    if options.settings is not None:
        settings, source = options.settings, "--sla-config"
    elif present.state is not None and present.state.settings is not None:
        settings, source = present.state.settings, f"the old {STATE_FILE}"
    else:
        config = _run_config(directory, options)
        found = config.sla_settings() if config is not None else None
        if config is not None and found is not None:
            settings, source = found, config.path
        else:
            settings, source = SLASettings(), "the defaults"
    if options.overrides:
        settings, source = replace(settings, **dict(options.overrides)), f"options over {source}"
    return settings, source


def _run_config(directory: Path, options: RegenOptions) -> RunConfig | None:
    if options.config is not None:
        return load_run_config(options.config)
    for folder in (directory, directory.parent):
        if not folder.is_dir():
            continue
        try:
            config, _ = find_run_config(LocalSource(folder))
        except TargetNotFoundError:  # a folder that may not be listed
            continue
        if config is not None:
            return config
    return None
