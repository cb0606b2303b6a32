"""Latents into token sequences and back, and other small tensor chores of several families."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.families.base import Batch, Sample


def pack_2x2(latents: Tensor) -> Tensor:
    """[B, C, h, w] → [B, (h/2)(w/2), 4C]: each 2×2 square becomes one token, channel-major."""
    batch, channels, rows, columns = latents.shape
    squares = latents.reshape(batch, channels, rows // 2, 2, columns // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(
        batch, (rows // 2) * (columns // 2), channels * 4
    )


def unpack_2x2(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """[B, (h/2)(w/2), 4C] → [B, C, h, w], the inverse of :func:`pack_2x2`."""
    batch, _, width = tokens.shape
    squares = tokens.reshape(batch, rows // 2, columns // 2, width // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // 4, rows, columns)


def patchify_2x2(latents: Tensor) -> Tensor:
    """[C, h, w] → [4C, h/2, w/2], channel-major."""
    channels, rows, columns = latents.shape
    squares = latents.reshape(channels, rows // 2, 2, columns // 2, 2)
    return squares.permute(0, 2, 4, 1, 3).reshape(channels * 4, rows // 2, columns // 2)


def grid_ids(rows: int, columns: int, like: Tensor) -> Tensor:
    """Position ids [rows·columns, 3] = (0, row, column), in the dtype and device of ``like``."""
    ids = torch.zeros(rows, columns, 3, dtype=like.dtype, device=like.device)
    ids[..., 1] = torch.arange(rows, dtype=like.dtype, device=like.device)[:, None]
    ids[..., 2] = torch.arange(columns, dtype=like.dtype, device=like.device)[None, :]
    return ids.reshape(rows * columns, 3)


def as_input(batch: Batch, name: str, noisy: Tensor) -> Tensor:
    """A conditioning tensor on the device and in the compute dtype of ``noisy``."""
    return batch.conditioning[name].to(noisy.device, noisy.dtype)


def mask_input(batch: Batch, name: str, text: str, noisy: Tensor) -> Tensor:
    """A text mask [B, T], all ones where the samples have none; int64 on ``noisy``'s device."""
    mask = batch.conditioning.get(name)
    if mask is None:
        tokens = batch.conditioning[text].shape[1]
        return torch.ones(len(batch), tokens, dtype=torch.int64, device=noisy.device)
    return mask.to(noisy.device).ne(0).to(torch.int64)


def scaled_steps(t: Tensor, factor: float = 1000.0) -> Tensor:
    """Noise levels as the flow-matching schedulers number them, float32 [B]."""
    return t.float() * factor


def trim_to_mask(sample: Sample, mask_name: str, *text_names: str) -> Sample:
    """Drop padded text tokens, and the mask with them.

    Raises:
        RegenError: The mask's length differs from the text's, or it hides every token.
    """
    mask = sample.conditioning.get(mask_name)
    if mask is None:
        return sample
    keep = mask.ne(0)
    if not bool(keep.any()):
        raise RegenError(f"{sample.source}: {mask_name} hides every token")
    conditioning: dict[str, Tensor] = {
        name: value for name, value in sample.conditioning.items() if name != mask_name
    }
    for name in text_names:
        text = conditioning[name]
        if text.shape[0] != keep.shape[0]:
            raise RegenError(
                f"{sample.source}: {name} has {text.shape[0]} tokens, {mask_name} {keep.shape[0]}"
            )
        conditioning[name] = text[keep]
    return Sample(sample.latents, conditioning, sample.source)


def refuse(problem: str) -> RegenError:
    """The error for a variant of a family that has inputs no sample provides."""
    return RegenError(problem, hint="give all inputs yourself: --inputs FILE.safetensors")


def entry(config: Mapping[str, object], name: str, default: int) -> int:
    """A whole-number config entry, or the class's default when it is missing or null."""
    value = config.get(name)
    return value if isinstance(value, int) else default
