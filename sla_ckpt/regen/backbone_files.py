"""Which files of a checkpoint hold the denoiser, and what it is. Reads configs and indexes only.

Source of the layouts: diffusers' ``save_pretrained`` (config.json beside
``diffusion_pytorch_model[.variant].safetensors`` or its shards and index), and SimpleTuner's
checkpoint directories (``transformer/``, ``unet/``, ``transformer_ema/``, ``unet_ema/``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sla_ckpt.checkpoint.jsonio import parse_json
from sla_ckpt.checkpoint.weights import STEM
from sla_ckpt.errors import FormatError, RegenError

DENOISER_FOLDERS = ("transformer", "unet", "prior")
LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class BackboneFiles:
    """A denoiser in diffusers format.

    Attributes:
        folder: Holds config.json and the weights.
        config: config.json.
        class_name: Its ``_class_name``.
        weights: safetensors files, in the index's order when sharded.
        weight_map: Tensor name -> file name, None when not sharded.
    """

    folder: Path
    config: Mapping[str, Any]
    class_name: str
    weights: tuple[Path, ...]
    weight_map: Mapping[str, str] | None


def find_backbone(
    root: Path, *, ema: bool = False, denoiser: str | None = None
) -> BackboneFiles | None:
    """Find the denoiser of a checkpoint, a pipeline folder or a plain diffusers folder.

    Args:
        root: The folder.
        ema: Take the EMA copy (``transformer_ema/``).
        denoiser: Subfolder to take instead of the usual ones (``transformer_2`` of Wan 2.2).

    Returns:
        None when no denoiser is there (a LoRA checkpoint, for one).

    Raises:
        RegenError: A denoiser is there but cannot be loaded: no safetensors, an incomplete set
            of shards, no EMA copy although asked, a quantised one, …
    """
    if not root.is_dir():
        raise RegenError(
            f"{root} is not a directory", hint="name a checkpoint directory", path=str(root)
        )
    folder = _folder(root, ema=ema, denoiser=denoiser)
    if folder is None:
        return None
    config = read_json(folder / "config.json")
    class_name = config.get("_class_name")
    if not isinstance(class_name, str):
        raise RegenError(
            f"{folder / 'config.json'} does not name its class (_class_name)",
            hint="the folder must be a diffusers model, as save_pretrained writes it",
            path=str(folder / "config.json"),
        )
    if "quantization_config" in config:
        method = config["quantization_config"]
        name = method.get("quant_method") if isinstance(method, Mapping) else None
        raise RegenError(
            f"{folder} is quantised ({name or 'unknown method'}); regen needs the full weights",
            hint="name the unquantised model with --base-model, or save it dequantised",
            path=str(folder),
        )
    weights, weight_map = _weights(folder)
    return BackboneFiles(folder, config, class_name, weights, weight_map)


def _folder(root: Path, *, ema: bool, denoiser: str | None) -> Path | None:
    suffix = "_ema" if ema else ""
    if denoiser is not None:
        folder = root / f"{denoiser}{suffix}"
        if not (folder / "config.json").is_file():
            raise RegenError(
                f"{folder} is not a diffusers model (no config.json)",
                hint="name a subfolder that holds config.json and safetensors weights",
                path=str(folder),
            )
        return folder
    for name in DENOISER_FOLDERS:
        plain, wanted = root / name, root / f"{name}{suffix}"
        if (wanted / "config.json").is_file():
            return wanted
        if ema and (plain / "config.json").is_file():
            held = " (only ema_model.pt)" if (wanted / "ema_model.pt").is_file() else ""
            raise RegenError(
                f"{root} has no EMA copy of {name}/ in diffusers format{held}",
                hint="leave --ema out to use the trained weights",
                path=str(wanted),
            )
    own = root / "config.json"
    if own.is_file() and "_class_name" in read_json(own):
        if ema:
            raise RegenError(
                f"{root} is a plain model folder and has no EMA copy",
                hint="leave --ema out, or name the EMA folder itself",
                path=str(root),
            )
        return root
    return None


def _weights(folder: Path) -> tuple[tuple[Path, ...], Mapping[str, str] | None]:
    names = sorted(path.name for path in folder.iterdir())
    single = [f"{STEM}.safetensors", *(n for n in names if _is_variant(n, ".safetensors"))]
    index = [
        f"{STEM}.safetensors.index.json",
        *(n for n in names if n.startswith(f"{STEM}.safetensors.index.") and n.endswith(".json")),
    ]
    # As diffusers: the plain name first; a variant (fp16) only when nothing else is there.
    for candidate in (index[0], single[0], *index[1:], *single[1:]):
        path = folder / candidate
        if not path.is_file():
            continue
        if not candidate.endswith(".json"):
            return (path,), None
        return _shards(folder, path)
    others = [n for n in names if n.endswith((".bin", ".pt", ".ckpt", ".gguf"))]
    if others:
        raise RegenError(
            f"{folder} has its weights in {others[0]}, not in safetensors",
            hint="load it with diffusers and save_pretrained(..., safe_serialization=True)",
            path=str(folder / others[0]),
        )
    raise RegenError(
        f"{folder} has a config.json but no {STEM}*.safetensors",
        hint="copy or download the weights; `sla-ckpt verify` lists what is missing",
        path=str(folder),
    )


def _is_variant(name: str, suffix: str) -> bool:
    """``diffusion_pytorch_model.fp16.safetensors``, but no shard ``…-00001-of-00003``."""
    return (
        name.startswith(f"{STEM}.")
        and name.endswith(suffix)
        and name != STEM + suffix
        and "-of-" not in name
    )


def _shards(folder: Path, index: Path) -> tuple[tuple[Path, ...], Mapping[str, str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RegenError(f"{index} has no weight_map", hint="copy the index again", path=str(index))
    files = sorted({str(name) for name in weight_map.values()})
    for name in files:
        if Path(name).name != name:
            raise RegenError(f"{index} names a shard outside its folder: {name!r}", path=str(index))
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise RegenError(
            f"{folder} lacks {len(absent)} of {len(files)} shards, first {absent[0]}",
            hint="copy or download the missing shards",
            path=str(folder / absent[0]),
        )
    return tuple(folder / name for name in files), weight_map


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RegenError: Unreadable, or not an object.
    """
    try:
        value = parse_json(path.read_bytes(), name=str(path))
    except OSError as error:
        raise RegenError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from error
    except FormatError as error:
        raise RegenError(error.message, path=str(path)) from error
    if not isinstance(value, dict):
        raise RegenError(f"{path} is not a JSON object", path=str(path))
    return value
