"""What, apart from the state file, tells that a checkpoint was trained with SLA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sla_ckpt.checkpoint.layout import MANIFEST_FILE
from sla_ckpt.errors import FormatError
from sla_ckpt.state import STATE_FILE
from sla_ckpt.text import count

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context


def manifest_files(context: Context) -> tuple[str, ...] | None:
    """The files that checkpoint_manifest.json lists, None when it lists none."""
    files: Any = (context.checkpoint.manifest or {}).get("files")
    if not isinstance(files, list):
        return None
    return tuple(item.replace("\\", "/") for item in files if isinstance(item, str))


def sla_groups(context: Context, path: str) -> tuple[int, int]:
    """How many parameter groups an optimizer file has, and how many trailing ones are SLA's."""
    structure = context.optimizers[path]
    if structure is None or isinstance(structure, FormatError):
        return 0, 0
    return len(structure.groups), len(structure.sla_groups())


def signs_of_sla(context: Context) -> list[str]:
    """Phrases, each one independent sign; empty when nothing speaks for SLA."""
    signs: list[str] = []
    if STATE_FILE in (manifest_files(context) or ()):
        signs.append(f"{MANIFEST_FILE} lists the file")
    if context.options.purpose != "inference":
        for path in context.checkpoint.optimizer_files:
            _, groups = sla_groups(context, path)
            if groups:
                signs.append(f"{path} carries {count(groups, 'SLA parameter group')}")
    config = context.run_config
    if config is not None and (config.attention_mechanism or "").lower() == "sla":
        signs.append(f"{config.path} sets attention_mechanism to sla")
    if "README.md" in context.source.files() and _card_says_sla(context):
        signs.append("README.md says that SLA is needed")
    return signs


def _card_says_sla(context: Context) -> bool:
    text = context.source.read("README.md", 0, 256 * 1024).decode("utf-8", "replace").lower()
    return "sparse-linear-attention" in text or STATE_FILE in text
