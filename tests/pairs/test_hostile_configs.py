"""No config, however wrong, gives anything but an answer or a UsageError."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sla_ckpt.errors import UsageError
from sla_ckpt.pairs.architecture import family_of_architecture
from sla_ckpt.pairs.defaults import CLASS_DEFAULTS
from sla_ckpt.pairs.table import expected_head_dims, known_classes
from sla_ckpt.pairs.tokens import sequence_lengths

KEYS = sorted({key for defaults in CLASS_DEFAULTS.values() for key in defaults} | {"heads_num"})
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 2048)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
CONFIGS = st.builds(
    lambda name, entries: {"_class_name": name, **entries},
    st.sampled_from(known_classes()) | VALUES,
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
)


@settings(max_examples=400, deadline=None)
@given(CONFIGS, st.integers(-2, 5000), st.integers(-2, 5000), st.integers(-2, 200))
def test_answers_or_usage_errors(config: dict[str, Any], width: int, height: int, n: int) -> None:
    try:
        found = expected_head_dims(config)
    except UsageError as error:
        assert error.hint
        assert "\n" not in error.message
        assert len(error.message) < 300
    else:
        assert all(1 <= d <= 65536 for d in (*found.head_dims, *found.possible))
    try:
        assert all(length >= 1 for length in sequence_lengths(config, width, height, n))
    except UsageError as error:
        assert len(error.message) < 300


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_architecture_is_a_guess_or_none(text: str) -> None:
    guess = family_of_architecture(text)
    assert guess is None or guess.class_name
