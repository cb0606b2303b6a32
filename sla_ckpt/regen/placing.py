"""Which device and dtype each tensor of a backbone gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sla_ckpt.errors import RegenError
from sla_ckpt.regen.tensor_files import Placement


class Placing:
    """Which device each tensor goes to, and accelerate's hooks where modules move."""

    def __init__(
        self,
        device: torch.device | str,
        dtype: torch.dtype | None,
        *,
        offload: bool,
    ) -> None:
        self.dtype = dtype
        self._spread = str(device) == "auto"
        self._offload = offload
        self._map: dict[str, Any] | None = None
        if self._spread and not torch.cuda.is_available():
            raise RegenError("--device auto needs CUDA", hint="use --device cpu")
        if self._spread and offload:
            raise RegenError(
                "--offload keeps the weights in host memory, --device auto on several cards",
                hint="use one of them",
            )
        self._device = torch.device("cuda", 0) if self._spread else torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())

    def of(self, model: nn.Module, name: str, *, keep_fp32: bool) -> Placement:
        dtype = torch.float32 if keep_fp32 and self.dtype is not None else self.dtype
        if self._offload:
            return Placement(torch.device("cpu"), dtype, pinned=self._device.type == "cuda")
        return Placement(self._spread_device(model, name), dtype)

    def _spread_device(self, model: nn.Module, name: str) -> torch.device:
        if not self._spread:
            return self._device
        if self._map is None:
            self._map = self._infer(model)
        prefix = name
        while prefix and prefix not in self._map:
            prefix = prefix.rpartition(".")[0]
        target = self._map[prefix]
        return torch.device("cuda", target) if isinstance(target, int) else torch.device(target)

    def _infer(self, model: nn.Module) -> dict[str, Any]:
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory

        whole = list(getattr(model, "_no_split_modules", None) or ())
        options = {"dtype": self.dtype, "no_split_module_classes": whole}
        memory = get_balanced_memory(model, **options)
        memory = {key: size for key, size in memory.items() if isinstance(key, int)}
        found = infer_auto_device_map(model, max_memory=memory, **options)
        if any(target in ("cpu", "disk") for target in found.values()):
            raise RegenError(
                f"{type(model).__name__} does not fit on the {len(memory)} cards together",
                hint="use --device cuda --offload",
            )
        return dict(found)

    def place_buffers(self, model: nn.Module) -> None:
        """Move what came from the constructor to where the weights are."""
        if not self._offload and not self._spread:
            model.to(self._device)

    def dispatch(self, model: nn.Module) -> None:
        """Let accelerate bring inputs and weights together."""
        if self._spread:
            from accelerate import dispatch_model

            dispatch_model(model, self._map, force_hooks=True)
        elif self._offload and self._device.type != "cpu":
            from accelerate import cpu_offload

            cpu_offload(model, self._device)
