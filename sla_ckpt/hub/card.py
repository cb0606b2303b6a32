"""The model card: a marked section that says what the model needs, and its metadata.

Only the section between the two markers and two tags are ours. Everything else in a README stays
as the user wrote it, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sla_ckpt.checkpoint.layout import CheckpointKind
from sla_ckpt.errors import FormatError
from sla_ckpt.state import STATE_FILE, TWIN_FILE, SLAState

BEGIN = "<!-- sla-ckpt: begin (generated, edits here are lost) -->"
END = "<!-- sla-ckpt: end -->"
TAGS = ("sparse-linear-attention", "sla")
_FRONT_MATTER = re.compile(
    r"\A(?:\ufeff)?---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL
)


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


def update_card(existing: str | None, facts: CardFacts) -> str:
    """The README with the section put in or replaced; a new README when there is none.

    Raises:
        FormatError: The README's metadata is not YAML, or its markers are broken.
    """
    section = render_section(facts)
    if existing is None or not existing.strip():
        return _with_tags(f"---\n---\n\n# {facts.repo_id.split('/')[-1]}\n\n{section}\n")
    return _with_tags(_with_section(existing, section))


def _with_section(text: str, section: str) -> str:
    begins, ends = text.count(BEGIN), text.count(END)
    if begins == ends == 0:
        newline = "\r\n" if "\r\n" in text else "\n"
        return text.rstrip("\r\n") + newline * 2 + section.replace("\n", newline) + newline
    start, stop = text.find(BEGIN), text.find(END)
    if begins != 1 or ends != 1 or stop < start:
        raise FormatError(
            "README.md: the sla-ckpt markers are broken (one of them is missing or doubled)",
            hint="delete both marker lines and what is between them, then push again",
            path="README.md",
        )
    newline = "\r\n" if "\r\n" in text else "\n"
    return text[:start] + section.replace("\n", newline) + text[stop + len(END) :]


def _with_tags(text: str) -> str:
    """Add our tags to the front matter without touching another line of it."""
    match = _FRONT_MATTER.match(text)
    newline = "\r\n" if "\r\n" in text else "\n"
    if match is None:
        lines = ["---", "tags:", *(f"- {tag}" for tag in TAGS), "---", "", ""]
        return newline.join(lines) + text.removeprefix("\ufeff")
    block = match[1]
    present = _tags_of(block)
    missing = [tag for tag in TAGS if tag not in present]
    if not missing:
        return text
    changed = _insert_tags(block, missing, newline)
    if not set(TAGS) <= set(_tags_of(changed)):
        raise FormatError(
            "README.md: its metadata has tags in a form that cannot be extended",
            hint=f"add the tags {', '.join(TAGS)} yourself, as a YAML list",
            path="README.md",
        )
    joined = changed + newline if changed else ""
    return f"---{newline}{joined}---{newline}" + text[match.end() :]


def _insert_tags(block: str, missing: list[str], newline: str) -> str:
    lines = block.splitlines()
    for index, line in enumerate(lines):
        inline = re.fullmatch(r"tags:\s*\[(.*)\]\s*", line)
        if inline:
            items = [inline[1].strip(), *missing] if inline[1].strip() else missing
            lines[index] = f"tags: [{', '.join(items)}]"
            return newline.join(lines)
        single = re.fullmatch(r"tags:\s*([^\s\[#][^#]*?)\s*", line)
        if single:
            lines[index : index + 1] = ["tags:", f"- {single[1]}", *(f"- {t}" for t in missing)]
            return newline.join(lines)
        if re.fullmatch(r"tags:\s*(#.*)?", line):
            following = lines[index + 1] if index + 1 < len(lines) else ""
            indent = re.match(r"(\s*)- ", following)
            lead = indent[1] if indent else ""
            lines[index + 1 : index + 1] = [f"{lead}- {tag}" for tag in missing]
            return newline.join(lines)
    return newline.join([*lines, "tags:", *(f"- {tag}" for tag in missing)])


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
        value = yaml.safe_load(block)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 2}" if mark is not None else ""
        raise FormatError(
            f"README.md: its metadata is not YAML{where}",
            hint="correct the block between the two --- lines",
            path="README.md",
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError("README.md: its metadata is not a YAML mapping", path="README.md")
    return value


def metadata_of(text: str) -> Mapping[str, object]:
    """The metadata of a whole README; empty when it has none."""
    match = _FRONT_MATTER.match(text)
    return parse_metadata(match[1]) if match else {}


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
    subfolder = f', subfolder="{facts.folder}"' if facts.folder else ""
    if facts.kind is CheckpointKind.PIPELINE and not facts.folder:
        load = [f'pipe = DiffusionPipeline.from_pretrained("{facts.repo_id}").to("cuda")']
    elif facts.kind in (CheckpointKind.LORA,):
        load = [
            'pipe = DiffusionPipeline.from_pretrained("BASE_MODEL").to("cuda")',
            f'pipe.load_lora_weights("{facts.repo_id}"{subfolder})',
        ]
    else:
        load = ['pipe = ...  # a pipeline with this model as its denoiser, on "cuda"']
    return [
        "```python",
        "import sla_ckpt",
        "from diffusers import DiffusionPipeline",
        "",
        *load,
        f'with sla_ckpt.use_sla("{where}"):',
        '    image = pipe("a lighthouse at dusk").images[0]',
        "```",
    ]


def state_file_names() -> tuple[str, str]:
    """The files whose hashes the section lists."""
    return STATE_FILE, TWIN_FILE
