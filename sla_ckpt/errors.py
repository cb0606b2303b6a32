"""The exceptions sla-ckpt raises.

Every one carries a one-line ``message`` (what is wrong, and where) and a ``hint`` (what to do
next). The CLI prints both and exits with ``exit_code``; nothing below the CLI prints or exits.
"""

from __future__ import annotations

from sla_ckpt.text import one_line

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_CANNOT = 2
EXIT_INTERRUPTED = 130


class SlaCkptError(Exception):
    """Base of everything sla-ckpt raises on purpose.

    Args:
        message: One line that names the thing that is wrong and where.
        hint: One line with the next step, preferably a command.
        path: The file or repository path concerned, if there is one.
    """

    exit_code = EXIT_CANNOT

    def __init__(self, message: str, *, hint: str | None = None, path: str | None = None) -> None:
        super().__init__(message)
        self.message = one_line(message)
        self.hint = one_line(hint) if hint else None
        self.path = path

    def __str__(self) -> str:
        return self.message


class UsageError(SlaCkptError):
    """An option, target or configuration value that makes no sense."""


class MissingExtraError(SlaCkptError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str, missing: str) -> None:
        super().__init__(
            f"{feature} needs {missing}, which is not installed",
            hint=f"run: pip install 'sla-ckpt[{extra}]'",
        )
        self.extra = extra


class PluginError(SlaCkptError):
    """A plug-in, which another package installed, does not load."""


class PluginWarning(UserWarning):
    """A plug-in is at fault and left out; the command goes on without it."""


class TargetNotFoundError(SlaCkptError):
    """The path or repository does not exist or cannot be opened."""


class FormatError(SlaCkptError):
    """A file is not readable as what it claims to be (rule SLA002, SLA302).

    ``kind`` names what the file really is: ``"empty"``, ``"truncated"``, ``"lfs-pointer"``,
    ``"html"``, ``"safetensors"``, ``"legacy-torch"``, ``"crc"``, ``"directory"``, ``"unknown"``…
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "unknown",
        hint: str | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, path=path)
        self.kind = kind


class UnsafePickleError(FormatError):
    """A pickle asks for a global outside the allow-list (rule SLA003). It is never executed."""

    def __init__(
        self, message: str, *, global_name: str, hint: str | None = None, path: str | None = None
    ) -> None:
        super().__init__(message, kind="unsafe-pickle", hint=hint, path=path)
        self.global_name = global_name


class StructureError(FormatError):
    """A file can be read, but what it holds is not an SLA state (rules SLA004, SLA2xx)."""

    def __init__(self, message: str, *, hint: str | None = None, path: str | None = None) -> None:
        super().__init__(message, kind="structure", hint=hint, path=path)


class LockedError(SlaCkptError):
    """Another process is writing to the same checkpoint."""


class WriteError(SlaCkptError):
    """A file could not be written; what was there before is untouched."""


class AttentionError(SlaCkptError):
    """SLA attention cannot run as asked (settings, shapes, device, kernel)."""


class MigrationError(SlaCkptError):
    """A layout cannot be converted without losing something."""


class RegenError(SlaCkptError):
    """Regeneration cannot start or gave nothing worth writing; the file is untouched."""


class HubError(SlaCkptError):
    """The Hub refused, failed or could not be reached. Never carries a token."""
