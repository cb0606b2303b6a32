"""Attention of the diffusers UNets and their ControlNets, from the config alone.

In these configs ``num_attention_heads or attention_head_dim`` is the *number* of heads of the
transformer blocks (a naming slip that diffusers keeps for compatibility); the head_dim is the
block's channels over it. Only the older block kinds (``AttnDownBlock2D``,
``SimpleCrossAttnDownBlock2D``) take ``attention_head_dim`` at its word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sla_ckpt.pairs.config import ConfigReader
from sla_ckpt.state import MAX_HEAD_DIM

_TRANSFORMER_BLOCKS = {"CrossAttnDownBlock2D", "CrossAttnUpBlock2D"}
_PLAIN_ATTENTION_BLOCKS = {"AttnDownBlock2D", "AttnUpBlock2D"}
# Keys are text and image tokens together, so they are longer than the queries.
_ADDED_KV_BLOCKS = {"SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"}
_NO_ATTENTION_BLOCKS = {
    "DownBlock2D",
    "UpBlock2D",
    "ResnetDownsampleBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipDownBlock2D",
    "SkipUpBlock2D",
    "KDownBlock2D",
    "KUpBlock2D",
}
_MAX_BLOCKS = 12


@dataclass(frozen=True)
class UNetAttention:
    """Attention of one resolution level.

    Attributes:
        head_dim: Channels of one head.
        level: How often the latent was halved before it.
        self_attention: Queries attend to their own sequence (key length = query length).
        cross_attention: Queries attend to another, or a longer, sequence.
    """

    head_dim: int
    level: int
    self_attention: bool
    cross_attention: bool


def unet_attention(reader: ConfigReader) -> tuple[UNetAttention, ...]:
    """Every attention a UNet (or ControlNet) of this config runs, at most once per kind.

    Raises:
        UsageError: Malformed entries, or a block kind whose attention is not known.
    """
    down = reader.str_tuple("down_block_types")
    count = len(down)
    if count > _MAX_BLOCKS:
        raise reader.error(f"down_block_types has {count} entries, more than {_MAX_BLOCKS}")
    channels = reader.int_tuple("block_out_channels")
    if len(channels) != count:
        raise reader.error(f"block_out_channels has {len(channels)} entries for {count} blocks")
    head_key = "num_attention_heads" if reader.get("num_attention_heads") else "attention_head_dim"
    heads = reader.per_block(head_key, count)
    dims = reader.per_block("attention_head_dim", count)
    layers = reader.per_block("transformer_layers_per_block", count)
    only_cross = reader.per_block("only_cross_attention", count)
    found = [
        _block(reader, kind, channels[i], heads[i], dims[i], layers[i], bool(only_cross[i]), i)
        for i, kind in enumerate(down)
    ]
    found.append(_mid_block(reader, channels[-1], heads[-1], dims[-1], layers[-1], count - 1))
    if reader.get("up_block_types") is not None:
        up = reader.str_tuple("up_block_types")
        if len(up) != count:
            raise reader.error(f"up_block_types has {len(up)} entries for {count} blocks")
        up_layers = layers[::-1]
        if reader.get("reverse_transformer_layers_per_block") is not None:
            up_layers = reader.per_block("reverse_transformer_layers_per_block", count)
        for i, kind in enumerate(up):
            j = count - 1 - i
            found.append(
                # The plain attention blocks on the way up read attention_head_dim unreversed.
                _block(
                    reader,
                    kind,
                    channels[j],
                    heads[j],
                    dims[i],
                    up_layers[i],
                    bool(only_cross[j]),
                    j,
                )
            )
    return tuple(dict.fromkeys(item for item in found if item is not None))


def _block(
    reader: ConfigReader,
    kind: str,
    channels: int,
    heads: Any,
    dim: Any,
    layers: Any,
    only_cross: bool,
    level: int,
) -> UNetAttention | None:
    if kind in _NO_ATTENTION_BLOCKS:
        return None
    if kind in _TRANSFORMER_BLOCKS:
        if not _has_layers(reader, layers):
            return None
        return UNetAttention(_per_head(reader, channels, heads), level, not only_cross, True)
    if kind in _PLAIN_ATTENTION_BLOCKS:
        head_dim = channels if dim is None else dim
        return UNetAttention(_stated(reader, head_dim), level, True, False)
    if kind in _ADDED_KV_BLOCKS:
        head_dim = channels if dim is None else dim
        return UNetAttention(_stated(reader, head_dim), level, False, True)
    raise reader.error(f"the attention of block kind {kind[:60]!r} is not known")


def _mid_block(
    reader: ConfigReader, channels: int, heads: Any, dim: Any, layers: Any, level: int
) -> UNetAttention | None:
    kind = reader.get("mid_block_type")
    if kind is None or kind == "UNetMidBlock2D":
        return None
    if kind == "UNetMidBlock2DCrossAttn":
        if not _has_layers(reader, layers):
            return None
        return UNetAttention(_per_head(reader, channels, heads), level, True, True)
    if kind == "UNetMidBlock2DSimpleCrossAttn":
        return UNetAttention(_stated(reader, dim), level, False, True)
    raise reader.error(f"the attention of mid_block_type {str(kind)[:60]!r} is not known")


def _has_layers(reader: ConfigReader, layers: Any) -> bool:
    """Whether a block has transformer layers; some distilled UNets leave them out with 0."""
    items = layers if isinstance(layers, list | tuple) else (layers,)
    for item in items:
        if item != 0 or isinstance(item, bool):
            reader.check_int("transformer_layers_per_block", item)
            return True
    return False


def _per_head(reader: ConfigReader, channels: int, heads: Any) -> int:
    count = reader.check_int("number of attention heads (attention_head_dim)", heads)
    if channels < count:
        raise reader.error(f"{count} attention heads for a block of {channels} channels")
    # diffusers divides without checking the remainder, and so do we.
    return reader.check_head_dim("block_out_channels/heads", channels // count)


def _stated(reader: ConfigReader, head_dim: Any) -> int:
    return reader.check_int("attention_head_dim", head_dim, limit=MAX_HEAD_DIM)
