"""Which (head_dim, dtype) pairs a model materialises, from its config, without torch.

An SLA state holds one projection per (head_dim, dtype) that met the attention. SLA takes a call
when it is four-dimensional, fp16 or bf16, without mask, dropout, causality or grouped queries.
Whether a model makes such calls depends on its class, and for some classes on whose
implementation runs: SimpleTuner carries its own copies of several diffusers models. The table
was made by recording every attention call of every class on both sides; a test repeats that for
diffusers on each run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from sla_ckpt.errors import UsageError
from sla_ckpt.pairs.config import ConfigReader, config_class_name
from sla_ckpt.pairs.plugins import plugin_head_dims
from sla_ckpt.pairs.unet import unet_attention
from sla_ckpt.state import PairKey, normalise_dtype

Trainer = Literal["simpletuner", "diffusers"]


class UnknownModelError(UsageError):
    """The table does not know this model class, and guessing would be worse than saying so."""

    def __init__(self, class_name: str | None) -> None:
        if class_name is None:
            message = "config.json has no _class_name, so the model class is unknown"
        else:
            message = f"model class {class_name[:80]} is not in the family table"
        super().__init__(message, hint="name the pairs it materialises: --expect 128:bf16")
        self.class_name = class_name


@dataclass(frozen=True)
class ExpectedPairs:
    """What a model of one config materialises.

    Attributes:
        class_name: The diffusers class.
        head_dims: Certain: every training run and every inference makes these, ascending.
        possible: May also appear, depending on how the model is called (masks, mostly).
        note: One line on why, for people.
    """

    class_name: str
    head_dims: tuple[int, ...]
    possible: tuple[int, ...] = ()
    note: str | None = None

    def keys(self, dtype: str) -> tuple[PairKey, ...]:
        """The certain pairs for queries of one dtype (any spelling)."""
        token = normalise_dtype(dtype)
        return tuple(PairKey(head_dim, token) for head_dim in self.head_dims)

    def allows(self, head_dim: int) -> bool:
        """Whether a pair of this head_dim can come from this model at all."""
        return head_dim in self.head_dims or head_dim in self.possible


_Rule = Callable[[ConfigReader, Trainer], ExpectedPairs]


def expected_head_dims(
    config: Mapping[str, Any], *, trainer: Trainer = "simpletuner"
) -> ExpectedPairs:
    """The head_dims that a model of this config materialises.

    Args:
        config: Parsed ``config.json`` of the denoiser, with ``_class_name``.
        trainer: Whose model code runs: SimpleTuner's own copies, or plain diffusers with this
            package's routing (which in addition leaves attention over another length alone).

    Raises:
        UnknownModelError: The class is neither in the table nor announced by a plug-in.
        UsageError: An entry the head_dims come from is malformed.
    """
    class_name = config_class_name(config)
    rule = _RULES.get(class_name) if class_name else None
    if class_name is not None and rule is not None:
        return rule(ConfigReader(config, class_name), trainer)
    head_dims = plugin_head_dims(class_name, config) if class_name is not None else None
    if class_name is None or head_dims is None:
        raise UnknownModelError(class_name)
    return ExpectedPairs(class_name, head_dims)


def known_classes() -> tuple[str, ...]:
    """The model classes the table knows, alphabetically."""
    return tuple(sorted(_RULES))


def _always(note: str | None = None) -> _Rule:
    """Unmasked self-attention with ``attention_head_dim``, whoever runs it."""

    def rule(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
        return ExpectedPairs(reader.class_name, (reader.head_dim(),), note=note)

    return rule


def _masked(note: str, *, unmasked_in: Trainer | None = None) -> _Rule:
    """Self-attention with ``attention_head_dim`` that is masked, except in one trainer."""

    def rule(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
        head_dim = reader.head_dim()
        if trainer == unmasked_in:
            return ExpectedPairs(reader.class_name, (head_dim,), note=note)
        return ExpectedPairs(reader.class_name, (), (head_dim,), note)

    return rule


def _hunyuan_1_5(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    head_dim = reader.quotient("hidden_size", "heads_num")
    note = "masked when a caption in the batch is padded"
    return ExpectedPairs(reader.class_name, (head_dim,), note=note)


def _ltx2(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    dims = {reader.head_dim(), reader.head_dim("audio_attention_head_dim")}
    note = "video and audio streams have their own head_dim"
    return ExpectedPairs(reader.class_name, tuple(sorted(dims)), note=note)


def _sana(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    head_dim = reader.head_dim("cross_attention_head_dim")
    note = "self-attention is linear already; only cross-attention without a mask would use SLA"
    # Cross-attention has another key length, which only SimpleTuner hands to SLA.
    possible = (head_dim,) if trainer == "simpletuner" else ()
    return ExpectedPairs(reader.class_name, (), possible, note)


def _lumina2(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    head_dim = reader.quotient("hidden_size", "num_attention_heads")
    note = "the main layers use SLA only when no caption in the batch is padded"
    return ExpectedPairs(reader.class_name, (head_dim,), note=note)


def _z_image(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    head_dim = reader.quotient("dim", "n_heads")
    note = "SimpleTuner masks every attention of this model, diffusers none at equal lengths"
    if trainer == "diffusers":
        return ExpectedPairs(reader.class_name, (head_dim,), note=note)
    return ExpectedPairs(reader.class_name, (), (head_dim,), note)


def _kandinsky5(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    axes = reader.int_tuple("axes_dims")
    head_dim = reader.check_head_dim("sum of axes_dims", sum(axes))
    return ExpectedPairs(reader.class_name, (head_dim,))


def _omnigen(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    head_dim = reader.quotient("hidden_size", "num_attention_heads")
    note = "every attention of this model is masked"
    return ExpectedPairs(reader.class_name, (), (head_dim,), note)


def _unet(reader: ConfigReader, trainer: Trainer) -> ExpectedPairs:
    found = unet_attention(reader)
    own = {item.head_dim for item in found if item.self_attention}
    cross = {item.head_dim for item in found if item.cross_attention} - own
    # SimpleTuner hands cross-attention to SLA as well.
    certain = own | cross if trainer == "simpletuner" else own
    note = None if certain else "this UNet has no self-attention"
    return ExpectedPairs(reader.class_name, tuple(sorted(certain)), note=note)


_CROSS_NOTE = "SimpleTuner hands its cross-attention to SLA too, at the same head_dim"
_FLUX_NOTE = "not when SimpleTuner trains with attention masks"
_QWEN_NOTE = "SimpleTuner attends per sample without a mask; diffusers masks padded captions"

_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "FluxTransformer2DModel": _always(_FLUX_NOTE),
        "FluxControlNetModel": _always(_FLUX_NOTE),
        "Flux2Transformer2DModel": _always(),
        "SD3Transformer2DModel": _always(),
        "SD3ControlNetModel": _always(),
        "QwenImageTransformer2DModel": _always(_QWEN_NOTE),
        "QwenImageControlNetModel": _always(_QWEN_NOTE),
        "WanTransformer3DModel": _always(_CROSS_NOTE),
        "WanVACETransformer3DModel": _always(_CROSS_NOTE),
        "SkyReelsV2Transformer3DModel": _always(_CROSS_NOTE),
        "HunyuanVideoTransformer3DModel": _masked("every attention of this model is masked"),
        "HunyuanVideo15Transformer3DModel": _masked(
            "SimpleTuner drops a mask that hides nothing, diffusers keeps it",
            unmasked_in="simpletuner",
        ),
        # SimpleTuner 3.1's own class of the same model.
        "HunyuanVideo_1_5_DiffusionTransformer": _hunyuan_1_5,
        "LTXVideoTransformer3DModel": _always(),
        "LTX2VideoTransformer3DModel": _ltx2,
        "CogVideoXTransformer3DModel": _always(),
        "AuraFlowTransformer2DModel": _always(),
        "PixArtTransformer2DModel": _always(),
        "SanaTransformer2DModel": _sana,
        "SanaControlNetModel": _sana,
        "Lumina2Transformer2DModel": _lumina2,
        "ChromaTransformer2DModel": _masked("masked whenever the text encoder gives a mask"),
        "ZImageTransformer2DModel": _z_image,
        "HiDreamImageTransformer2DModel": _always(),
        "CosmosTransformer3DModel": _always(_CROSS_NOTE),
        "Kandinsky5Transformer3DModel": _kandinsky5,
        "OmniGenTransformer2DModel": _omnigen,
        "UNet2DConditionModel": _unet,
        "ControlNetModel": _unet,
    }
)
