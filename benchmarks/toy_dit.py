"""A small diffusion transformer on procedural images: the subject of the recovery benchmark.

It trains from nothing in seconds on one accelerator, and has what matters here: several layers
that share one SLA projection, a head_dim of 64 or 128, and images with structure at a distance
(edges, stripes, mirrored halves) that attention has to use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sla_ckpt.regen.families.base import BaseAdapter, Batch, Conditioning, Config

CHANNELS = 3


@dataclass(frozen=True)
class ToyConfig:
    """Size of the toy."""

    head_dim: int = 64
    heads: int = 6
    layers: int = 8
    side: int = 64
    patch: int = 2

    @property
    def width(self) -> int:
        return self.head_dim * self.heads

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


class Block(nn.Module):
    """Attention and MLP with adaptive layer norm."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, L, width], condition [B, width]."""
        config = self.config
        parts = self.modulation(condition)[:, None].chunk(6, -1)
        h = F.layer_norm(x, (config.width,)) * (1 + parts[0]) + parts[1]
        q, k, v = self.qkv(h).unflatten(-1, (3, config.heads, config.head_dim)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (_unit(q), _unit(k), v))
        # bf16 whatever the weights are: SLA takes nothing wider, and a processor is slow at it.
        o = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
        x = x + parts[2] * self.out(o.transpose(1, 2).flatten(2).to(x.dtype))
        h = F.layer_norm(x, (config.width,)) * (1 + parts[3]) + parts[4]
        return x + parts[5] * self.down(F.gelu(self.up(h), approximate="tanh"))


def _unit(x: Tensor) -> Tensor:
    """x over its root mean square, as q and k norms do."""
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6).to(x.dtype)


class ToyDiT(nn.Module):
    """Flow matching in pixel space."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        inner = CHANNELS * config.patch**2
        self.embed = nn.Linear(inner, config.width)
        self.register_buffer("positions", _positions(config), persistent=False)
        self.time = nn.Sequential(
            nn.Linear(128, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, inner)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, 3, side, side], t [B] in (0, 1) -> velocity like x."""
        p = self.config.patch
        grid = self.config.side // p
        frequencies = torch.exp(torch.linspace(0, math.log(1000), 64, device=x.device))
        angles = t.float()[:, None] * frequencies
        condition = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], -1).to(x.dtype)))
        tokens = F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)
        h = self.embed(tokens) + self.positions.to(x.dtype)
        for block in self.blocks:
            h = block(h, condition)
        out = self.head(F.layer_norm(h, (self.config.width,)))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (grid, grid)), p)


def _positions(config: ToyConfig) -> Tensor:
    grid = config.side // config.patch
    axis = torch.arange(grid, dtype=torch.float32)
    frequencies = torch.exp(-torch.linspace(0, math.log(100), config.width // 4))
    angles = axis[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], -1)
    rows = table[:, None].expand(grid, grid, -1)
    columns = table[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).reshape(config.tokens, config.width)


def images(count: int, side: int, generator: torch.Generator, device: str = "cpu") -> Tensor:
    """Procedural images [count, 3, side, side] of mean about 0 and deviation about 1.

    Each has a colour gradient, stripes, several discs and rectangles with hard edges, and is
    mirrored with probability one half.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device) * (high - low) + low

    axis = torch.linspace(-1, 1, side, device=device)
    y, x = axis[:, None].expand(side, side), axis[None].expand(side, side)
    view = (count, 1, 1, 1)
    colours = uniform(count, 3, 1, 1, low=-1.2, high=1.2)
    picture = colours + uniform(*view, low=-1, high=1) * x + uniform(*view, low=-1, high=1) * y
    angle, rate = uniform(*view, high=math.pi), uniform(*view, low=3, high=12)
    stripes = torch.sin(rate * (x * angle.cos() + y * angle.sin()) + uniform(*view, high=6.3))
    picture = picture + 0.5 * stripes.sign() * uniform(count, 3, 1, 1, low=-1, high=1)
    for index in range(4):
        cx, cy = uniform(*view, low=-0.9, high=0.9), uniform(*view, low=-0.9, high=0.9)
        size, ratio = uniform(*view, low=0.15, high=0.5), uniform(*view, low=0.5, high=2.0)
        dx, dy = (x - cx) / size, (y - cy) / (size * ratio)
        inside = dx.square() + dy.square() < 1 if index % 2 else dx.abs().maximum(dy.abs()) < 1
        colour = uniform(count, 3, 1, 1, low=-1.5, high=1.5)
        picture = torch.where(inside, colour, picture)
    mirrored = torch.where(x > 0, picture.flip(-1), picture)
    picture = torch.where(uniform(*view) < 0.5, mirrored, picture)
    return picture * 1.1


@dataclass(frozen=True)
class ToyAdapter(BaseAdapter):
    """How regeneration talks to the toy."""

    name: str = "toy"
    class_names: tuple[str, ...] = ("ToyDiT",)
    vae_spatial: int = 1

    def tiny_config(self) -> dict[str, Any]:
        return {"_class_name": "ToyDiT", "in_channels": CHANNELS}

    def conditioning(self, config: Config) -> dict[str, Conditioning]:
        return {}

    def make_inputs(self, model: Any, batch: Batch, noisy: Tensor, t: Tensor) -> dict[str, Any]:
        return {"x": noisy, "t": t}
