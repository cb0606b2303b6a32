"""The model card: our section and tags go in, the user's text stays to the byte."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from sla_ckpt.checkpoint.layout import CheckpointKind
from sla_ckpt.errors import SlaCkptError
from sla_ckpt.hub.card import BEGIN, END, TAGS, CardFacts, update_card
from sla_ckpt.hub.front_matter import metadata_of
from tests.factories import state

FACTS = CardFacts(
    "alice/model",
    "",
    CheckpointKind.FULL,
    "FluxTransformer2DModel",
    state("128:bf16", "64:bf16"),
    {"sla_attention.pt": "a" * 64, "sla_attention.safetensors": "b" * 64},
)

CARDS = {
    "plain": "# My model\n\nText.\n",
    "no end of line": "# My model",
    "trailing blank lines": "# My model\n\n\n\n",
    "front matter": "---\nlicense: mit\n---\n# My model\n",
    "block tags": "---\ntags:\n- flux # mine\n- text-to-image\nlicense: mit\n---\ntext\n",
    "indented tags": "---\ntags:\n    - flux\n    - x\n# a comment\nlicense: mit\n---\ntext\n",
    "flow tags": '---\ntags: [flux, "a, b"]  # keep\nlicense: mit\n---\ntext\n',
    "flow tags over lines": "---\ntags: [\n  flux,\n  x\n]\nlicense: mit\n---\ntext\n",
    "empty flow tags": "---\ntags: []\n---\ntext\n",
    "tags with nothing": "---\ntags:\nlicense: mit\n---\ntext\n",
    "nested tags elsewhere": "---\nmodel-index:\n- name: x\n  tags:\n  - inner\n---\ntext\n",
    "empty block": "---\n---\ntext\n",
    "windows lines": "---\r\ntags:\r\n- flux\r\n---\r\n# My model\r\n",
    "byte order mark": "\ufeff---\nlicense: mit\n---\ntext\n",
    "rule in the text": "---\nlicense: mit\n---\nabove\n\n---\n\nbelow\n",
    "value with dashes": "---\ntitle: a --- b\nlicense: mit\n---\ntext\n",
    "odd separators": "---\nlicense: mit\n---\na\x0bb\u2028c\n",
}


def _without_ours(card: str) -> str:
    """The card without our section and the lines or items that name our tags."""
    begin, end = card.index(BEGIN), card.index(END) + len(END)
    return card[:begin] + card[end:]


@pytest.mark.parametrize("name", CARDS)
def test_every_line_of_the_user_survives(name: str) -> None:
    original = CARDS[name]
    card = update_card(original, FACTS)
    rest = _without_ours(card)
    has_block = original.lstrip("\ufeff").startswith("---")
    body = re.split(r"^---\s*?\n", original, maxsplit=2, flags=re.MULTILINE)[-1]
    assert (body if has_block else original) in rest
    for line in original.split("\n"):  # a list in brackets grows within its line
        assert line in rest.split("\n") or re.match(r"tags:|  x$", line), line
    assert card.startswith("\ufeff") == original.startswith("\ufeff")
    if "\r\n" in original:
        assert "\n" not in card.replace("\r\n", "")


@pytest.mark.parametrize("name", CARDS)
def test_tags_are_added_and_nothing_else_changes_in_the_metadata(name: str) -> None:
    before = dict(metadata_of(CARDS[name]))
    after = dict(metadata_of(update_card(CARDS[name], FACTS)))
    old_tags = before.pop("tags", None) or []
    tags = after.pop("tags")
    assert isinstance(old_tags, list) and isinstance(tags, list)
    assert before == after
    assert sorted(tags) == sorted([*old_tags, *TAGS])


@pytest.mark.parametrize("name", CARDS)
def test_a_second_time_changes_nothing(name: str) -> None:
    once = update_card(CARDS[name], FACTS)
    assert update_card(once, FACTS) == once


def test_the_section_is_replaced_where_it_stands() -> None:
    card = update_card("# Top\n", FACTS) + "\nwritten below\n"
    newer = CardFacts(
        "alice/model", "", CheckpointKind.FULL, None, state("96:bf16"), {"sla_attention.pt": "c"}
    )
    changed = update_card(card, newer)
    assert changed.count(BEGIN) == changed.count(END) == 1
    assert changed.endswith("\nwritten below\n")
    assert "`96:bf16`" in changed and "`128:bf16`" not in changed


def test_a_new_card_says_what_the_model_needs() -> None:
    card = update_card(None, FACTS)
    for text in ("needs it for inference", "topk 0.2", "`128:bf16`", "`64:bf16`", "a" * 64):
        assert text in card
    assert "sla-ckpt pull alice/model" in card and "enable_sla" in card and "SimpleTuner" in card
    assert list(metadata_of(card)["tags"]) == list(TAGS)  # type: ignore[call-overload]


def test_a_card_never_states_where_the_state_came_from_on_disk() -> None:
    origin = {"base_model": "/home/alice/secret/flux", "data": "synthetic", "sla_variant": "main"}
    facts = CardFacts(
        "alice/model", "", CheckpointKind.LORA, None, state(origin=origin), FACTS.hashes
    )
    card = update_card(None, facts)
    assert "/home" not in card and "secret" not in card
    assert "without real samples" in card


@pytest.mark.parametrize(
    "card",
    [
        "---\ntags: [a\n---\ntext\n",
        "---\n- a\n- b\n---\ntext\n",
        "---\nlicense: mit\ntags: {a: b}\n---\ntext\n",
        f"text\n{BEGIN}\nno end\n",
        f"text\n{END}\n{BEGIN}\n",
        f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n",
    ],
)
def test_a_broken_card_is_an_error_with_a_next_step(card: str) -> None:
    with pytest.raises(SlaCkptError) as raised:
        update_card(card, FACTS)
    assert "README.md" in raised.value.message and raised.value.hint


def test_the_metadata_is_valid_yaml_for_an_independent_reader() -> None:
    card = update_card(CARDS["flow tags"], FACTS)
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["flux", "a, b", *TAGS]


@pytest.mark.parametrize(
    ("kind", "folder", "line"),
    [
        (CheckpointKind.FULL, "", '"alice/model", subfolder="transformer", torch_dtype'),
        (CheckpointKind.FULL, "ck", '"alice/model", subfolder="ck/transformer", torch_dtype'),
        (CheckpointKind.DIFFUSERS, "", '"alice/model", torch_dtype'),
        (CheckpointKind.PIPELINE, "", 'DiffusionPipeline.from_pretrained("alice/model", torch_d'),
        (CheckpointKind.LORA, "", 'pipe.load_lora_weights("alice/model")'),
        (CheckpointKind.LYCORIS, "", "pipe = ..."),
    ],
)
def test_the_example_is_python_that_loads_this_kind(
    kind: CheckpointKind, folder: str, line: str
) -> None:
    facts = dataclasses.replace(FACTS, kind=kind, folder=folder)
    card = update_card(None, facts)
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert line in code
    where = f"alice/model/{folder}" if folder else "alice/model"
    assert f'sla_ckpt.enable_sla(pipe, "{where}")' in code
