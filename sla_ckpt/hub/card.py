"""The model card: a marked section that says what the model needs, and its metadata.

Only the section between the two markers and two tags are ours. Everything else in a README stays
as the user wrote it, to the byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sla_ckpt.checkpoint.layout import CheckpointKind
from sla_ckpt.errors import FormatError
from sla_ckpt.hub.front_matter import add_tags, newline_of
from sla_ckpt.state import STATE_FILE, SLAState

BEGIN = "<!-- sla-ckpt: begin (generated, edits here are lost) -->"
END = "<!-- sla-ckpt: end -->"
TAGS = ("sparse-linear-attention", "sla")
_MARK = re.compile(re.escape(BEGIN) + r"\r?\n<!-- text ([0-9a-f]{16}) -->")


@dataclass(frozen=True)
class CardFacts:
    """What the section states.

    Attributes:
        repo_id: Where it is published.
        folder: Folder in the repository, ``""`` for the root.
        kind: What the checkpoint is.
        class_name: The denoiser's class, if known.
        state: The published state.
        hashes: File name -> sha256, of the state files.
    """

    repo_id: str
    folder: str
    kind: CheckpointKind
    class_name: str | None
    state: SLAState
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class CardText:
    """The README that a card is built on.

    Attributes:
        text: It; None when there is none.
        mark: Hash of the user's text when the section was last written from the local README.
            Kept in the section: by it a later push tells an edit made on the Hub from a local one.
        warning: What the user should know about the choice.
    """

    text: str | None = None
    mark: str = ""
    warning: str | None = None


def choose_text(local: str | None, remote: str | None, *, prefer_local: bool) -> CardText:
    """Whose text to build on: the local README, unless the Hub's was edited there.

    Args:
        local: README.md of the checkpoint.
        remote: README.md of the repository.
        prefer_local: Take the local one in any case.
    """
    if remote is None:
        return CardText(local, _hash(local or ""))
    recorded = _MARK.search(remote)
    if local is None or _hash(local) == _hash(remote):
        return CardText(remote, recorded[1] if recorded else _hash(remote))
    if prefer_local or (recorded and recorded[1] == _hash(remote)):
        return CardText(local, _hash(local))
    return CardText(
        remote,
        # Not the new hash: the next push must still see that the Hub's text is not the local one.
        recorded[1] if recorded else "0" * 16,
        "README.md on the Hub was edited there and is kept, the local one is not sent; "
        "--include README.md replaces it",
    )


def _hash(text: str) -> str:
    """Of what is the user's: without our section, our tags and line-end style."""
    start, stop = text.find(BEGIN), text.find(END)
    rest = text[:start] + text[stop + len(END) :] if 0 <= start < stop else text
    with contextlib.suppress(FormatError):  # said when the card is made
        rest = add_tags(rest, TAGS)
    plain = rest.replace("\r\n", "\n").strip()
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def update_card(existing: str | None, facts: CardFacts, *, mark: str = "") -> str:
    """The README with the section put in or replaced; a new README when there is none.

    Args:
        existing: The text to build on.
        facts: What the section states.
        mark: See :class:`CardText`.

    Raises:
        FormatError: The README's metadata is not YAML, or its markers are broken.
    """
    if existing is None or not existing.strip():
        existing = f"---\n---\n\n# {facts.repo_id.split('/')[-1]}\n"
        mark = mark and _hash(existing)
    section = render_section(facts)
    if mark:
        section = section.replace(BEGIN, f"{BEGIN}\n<!-- text {mark} -->", 1)
    return add_tags(_with_section(existing, section), TAGS)


def _with_section(text: str, section: str) -> str:
    begins, ends = text.count(BEGIN), text.count(END)
    newline = newline_of(text)
    section = section.replace("\n", newline)
    if begins == ends == 0:
        ended = 2 if text.endswith(newline * 2) else 1 if text.endswith(newline) else 0
        return text + newline * (2 - ended) + section + newline
    start, stop = text.find(BEGIN), text.find(END)
    if begins != 1 or ends != 1 or stop < start:
        raise FormatError(
            "README.md: the sla-ckpt markers are broken (one of them is missing or doubled)",
            hint="delete both marker lines and what is between them, then push again",
            path="README.md",
        )
    return text[:start] + section + text[stop + len(END) :]


def render_section(facts: CardFacts) -> str:
    """The generated section, markers included. States no local path."""
    state, settings = facts.state, facts.state.settings
    where = f"{facts.repo_id}/{facts.folder}" if facts.folder else facts.repo_id
    shown = ", ".join(f"{k} {v}" for k, v in settings.to_dict().items()) if settings else "unknown"
    pairs = ", ".join(f"`{pair}`" for pair in state.pairs)
    variant = state.origin.get("sla_variant", "not recorded, `main` is assumed")
    lines = [
        BEGIN,
        "## Sparse–Linear Attention",
        "",
        "This model was trained with SLA (Sparse–Linear Attention) and needs it for inference: "
        f"without `{STATE_FILE}`, or with dense attention, quality is much lower.",
        "",
        "| | |",
        "|---|---|",
        f"| settings | {shown} |",
        f"| pairs (head_dim:dtype) | {pairs} |",
        f"| SLA variant | {variant} |",
    ]
    if facts.class_name:
        lines.append(f"| model class | `{facts.class_name}` |")
    if state.origin.get("data") == "synthetic":
        lines.append("| quality | regenerated without real samples: not confirmed |")
    lines += [f"| sha256 of `{name}` | `{digest}` |" for name, digest in facts.hashes.items()]
    lines += ["", "### In diffusers", "", *_diffusers_example(facts, where)]
    lines += [
        "",
        "### In SimpleTuner",
        "",
        "Set `attention_mechanism` to `sla` with the settings above and resume from a folder that "
        f"`sla-ckpt pull {where} DIR` made: it puts `{STATE_FILE}` where the trainer looks and "
        "verifies the result.",
        "",
        f"Check this repository: `sla-ckpt verify {where}`.",
        END,
    ]
    return "\n".join(lines)


def _diffusers_example(facts: CardFacts, where: str) -> list[str]:
    """The three lines, with what comes before them for this kind of checkpoint."""
    return [
        "```python",
        "import sla_ckpt",
        "import torch",
        "import diffusers",
        "",
        *_loading(facts),
        f'sla_ckpt.enable_sla(pipe, "{where}")',
        'image = pipe("a lighthouse in fog").images[0]',
        "```",
    ]


def _loading(facts: CardFacts) -> list[str]:
    pipeline = "pipe = diffusers.DiffusionPipeline.from_pretrained("
    dtype = 'torch_dtype=torch.bfloat16).to("cuda")'
    subfolder = f', subfolder="{facts.folder}"' if facts.folder else ""
    if facts.kind is CheckpointKind.PIPELINE and not facts.folder:
        return [f'{pipeline}"{facts.repo_id}", {dtype}']
    if facts.kind is CheckpointKind.LORA:
        return [
            f'{pipeline}"BASE_MODEL", {dtype}',
            f'pipe.load_lora_weights("{facts.repo_id}"{subfolder})',
        ]
    if facts.class_name is None or facts.kind not in (
        CheckpointKind.FULL,
        CheckpointKind.DIFFUSERS,
    ):
        return ["pipe = ...  # a pipeline with this model as its denoiser, in bfloat16"]
    part = "unet" if facts.class_name.startswith("UNet") else "transformer"
    inside = [facts.folder] if facts.folder else []
    inside += [part] if facts.kind is CheckpointKind.FULL else []
    folder = f', subfolder="{"/".join(inside)}"' if inside else ""
    return [
        f"model = diffusers.{facts.class_name}.from_pretrained(",
        f'    "{facts.repo_id}"{folder}, torch_dtype=torch.bfloat16',
        ")",
        f'{pipeline}"BASE_MODEL", {part}=model, {dtype}',
    ]
