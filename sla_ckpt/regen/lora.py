"""LoRA weights over a frozen backbone, through peft; every key of the file must land.

Key styles understood: SimpleTuner's and peft's (``transformer.<module>.lora_A.weight``), diffusers'
older ones (``unet.<module>.lora.down.weight``, ``<attn>.processor.to_q_lora.down.weight``), and
``lora_down``/``lora_up`` with ``alpha`` beside them. Scales come from alpha tensors, else from
``lora_adapter_metadata``, else alpha = rank, as in diffusers. kohya's flattened names and LyCORIS
are refused: their module names or their algebra are not in the file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sla_ckpt.errors import MissingExtraError, RegenError
from sla_ckpt.regen.streaming import load_tensors
from sla_ckpt.regen.tensor_files import Placement, read_table_and_metadata

ADAPTER_NAME = "default"
METADATA_KEY = "lora_adapter_metadata"

_TEXT_ENCODER = re.compile(r"^text_encoder(_\d)?\.")
_PREFIXES = ("base_model.model.", "transformer.", "unet.", "diffusion_model.")
_LYCORIS = re.compile(r"\.(lokr_|hada_|oft_|lora_mid|glora_|boft_)|^lycoris_|\.(diff|diff_b)$")
_KOHYA = re.compile(r"^lora_(unet|te\d?|transformer|prior)_")
_SUFFIXES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lora_A(\.default)?\.weight$"), "lora_A.weight"),
    (re.compile(r"\.lora_B(\.default)?\.weight$"), "lora_B.weight"),
    (re.compile(r"\.lora_B(\.default)?\.bias$"), "lora_B.bias"),
    (re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?$"), "lora_magnitude_vector"),
    (re.compile(r"(\.lora\.|\.lora_|_lora\.)down\.weight$"), "lora_A.weight"),
    (re.compile(r"(\.lora\.|\.lora_|_lora\.)up\.weight$"), "lora_B.weight"),
    (re.compile(r"(\.lora)?\.alpha$"), "alpha"),
)
_NAMED_IN_ERRORS = 3


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """A LoRA file, sorted by module.

    Attributes:
        path: The file.
        modules: Module name (without the ``transformer.`` prefix) -> part -> tensor on the CPU;
            parts are ``lora_A.weight``, ``lora_B.weight``, ``lora_B.bias``,
            ``lora_magnitude_vector`` and ``alpha``.
        settings: peft's LoraConfig entries of the denoiser, from the file's metadata.
        text_encoder_keys: How many keys belong to text encoders; these are left out.
        base_model: Base model named in the metadata, if one is.
    """

    path: Path
    modules: Mapping[str, Mapping[str, Tensor]]
    settings: Mapping[str, Any]
    text_encoder_keys: int
    base_model: str | None


def read_lora(path: Path) -> LoraAdapter:
    """Read a LoRA file.

    Raises:
        RegenError: A LyCORIS, kohya's key style, keys of no known style, or half a module.
        FormatError: Not a safetensors file.
    """
    table, metadata = read_table_and_metadata(path)
    if (path.parent / "lycoris_config.json").is_file() or "lycoris_config" in metadata:
        raise _lycoris(path)
    modules: dict[str, dict[str, Tensor]] = {}
    targets: dict[str, tuple[str, str]] = {}
    text_encoder = 0
    for key in table:
        if _LYCORIS.search(key):
            raise _lycoris(path)
        if _KOHYA.match(key):
            raise RegenError(
                f"{path} has kohya's key names ({key})",
                hint="load it in its diffusers pipeline and save it with save_lora_weights()",
                path=str(path),
            )
        if _TEXT_ENCODER.match(key):
            text_encoder += 1
            continue
        targets[key] = _split(key, path)

    def accept(key: str, tensor: Tensor) -> None:
        module, part = targets[key]
        modules.setdefault(module, {})[part] = tensor

    load_tensors(
        [table[key] for key in targets], lambda _: Placement(torch.device("cpu"), None), accept
    )
    for module, parts in modules.items():
        if not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
            raise RegenError(
                f"{path}: module {module} has {', '.join(sorted(parts))} but not both halves",
                hint="the file is incomplete; copy it again",
                path=str(path),
            )
    if not modules:
        raise RegenError(
            f"{path} holds no LoRA of the denoiser",
            hint="is it a LoRA of the text encoder only?",
            path=str(path),
        )
    settings = _settings(metadata)
    base = settings.get("base_model_name_or_path")
    return LoraAdapter(
        path=path,
        modules=modules,
        settings=settings,
        text_encoder_keys=text_encoder,
        base_model=base if isinstance(base, str) and base else None,
    )


def _lycoris(path: Path) -> RegenError:
    return RegenError(
        f"{path} is a LyCORIS adapter, which regen cannot put on its base",
        hint="merge it into its base model, save that in diffusers format, "
        "and run `sla-ckpt regen` on the merged folder",
        path=str(path),
    )


def _split(key: str, path: Path) -> tuple[str, str]:
    """``transformer.a.b.lora_A.weight`` -> (``a.b``, ``lora_A.weight``)."""
    for pattern, part in _SUFFIXES:
        found = pattern.search(key)
        if found is None:
            continue
        module = key[: found.start()]
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        # diffusers' oldest style kept the factors in the attention processor.
        parent, _, leaf = module.rpartition(".")
        if parent.endswith(".processor"):
            leaf = "to_out.0" if leaf == "to_out" else leaf
            module = f"{parent.removesuffix('.processor')}.{leaf}"
        return module, part
    raise RegenError(
        f"{path}: key {key!r} is of no LoRA style that regen knows",
        hint="load it in its diffusers pipeline and save it with save_lora_weights()",
        path=str(path),
    )


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        stored = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError:
        return {}
    if not isinstance(stored, dict):
        return {}
    for prefix in ("transformer.", "unet."):
        mine = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        if mine:
            return mine
    return {k: v for k, v in stored.items() if not _TEXT_ENCODER.match(k)}


def apply_lora(model: nn.Module, adapter: LoraAdapter) -> str:
    """Put the adapter on the model, frozen, in the dtype and on the device of what it adapts.

    Args:
        model: A loaded diffusers model.
        adapter: From :func:`read_lora`.

    Returns:
        A few words for reports: modules and ranks.

    Raises:
        RegenError: A module or a shape that this model does not have; a key that did not land.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import inject_adapter_in_model, set_peft_model_state_dict
    except ImportError as error:
        raise MissingExtraError("a LoRA checkpoint", "regen", str(error.name)) from error

    _check_fits(model, adapter)
    ranks = {name: int(parts["lora_A.weight"].shape[0]) for name, parts in adapter.modules.items()}
    alphas = {name: _alpha(name, adapter, rank) for name, rank in ranks.items()}
    config = _peft_config(adapter, ranks, alphas)
    flat = {
        f"{name}.{part}": tensor
        for name, parts in adapter.modules.items()
        for part, tensor in parts.items()
        if part != "alpha"
    }
    try:
        inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
        outcome = set_peft_model_state_dict(model, flat, adapter_name=ADAPTER_NAME)
    except (ValueError, RuntimeError, KeyError) as error:
        raise RegenError(
            f"peft cannot put {adapter.path} on {type(model).__name__}: {error}",
            path=str(adapter.path),
        ) from error
    lost = list(getattr(outcome, "unexpected_keys", None) or ()) if outcome is not None else []
    lost += _not_landed(model, adapter)
    if lost:
        raise RegenError(
            f"{len(lost)} tensors of {adapter.path} did not reach the model, first {lost[0]}",
            hint="peft's version may differ from the one that wrote the file; upgrade peft",
            path=str(adapter.path),
        )
    model.requires_grad_(False)
    model.eval()
    low, high = min(ranks.values()), max(ranks.values())
    spread = f"{low}–{high}" if low != high else low
    alpha = f"{config.lora_alpha:g}"
    note = f"LoRA {adapter.path.name} ({len(ranks)} modules, rank {spread}, alpha {alpha}"
    if adapter.text_encoder_keys:
        note += f", {adapter.text_encoder_keys} text-encoder tensors left out"
    return note + ")"


def _peft_config(
    adapter: LoraAdapter, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> Any:
    """The LoraConfig that this file was made with; the most common rank and alpha are the base."""
    from peft import LoraConfig

    rank, alpha = _most_common(ranks), _most_common(alphas)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(re.escape(name) for name in adapter.modules),
        rank_pattern={f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(name)}": a for name, a in alphas.items() if a != alpha},
        use_rslora=bool(adapter.settings.get("use_rslora")),
        use_dora=any("lora_magnitude_vector" in parts for parts in adapter.modules.values()),
        lora_bias=any("lora_B.bias" in parts for parts in adapter.modules.values()),
        init_lora_weights=False,
        lora_dropout=0.0,
    )


def _check_fits(model: nn.Module, adapter: LoraAdapter) -> None:
    known = dict(model.named_modules())
    absent = [name for name in adapter.modules if name not in known]
    if absent:
        shown = ", ".join(absent[:_NAMED_IN_ERRORS])
        raise RegenError(
            f"{len(absent)} of {len(adapter.modules)} LoRA modules of {adapter.path} are not in "
            f"{type(model).__name__}, first {shown}",
            hint="is this its base model? name another with --base-model",
            path=str(adapter.path),
        )
    for name, parts in adapter.modules.items():
        weight = getattr(known[name], "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            raise RegenError(
                f"{adapter.path}: module {name} is {type(known[name]).__name__}, "
                "which takes no LoRA",
                path=str(adapter.path),
            )
        down, up = parts["lora_A.weight"], parts["lora_B.weight"]
        ends = (weight.shape[0], weight.shape[1])
        if (up.shape[0], down.shape[1]) != ends or up.shape[1] != down.shape[0]:
            raise RegenError(
                f"LoRA of {name} is {list(up.shape)} × {list(down.shape)}, "
                f"the base model's weight is {list(weight.shape)}",
                hint="is this its base model? name another with --base-model",
                path=str(adapter.path),
            )


def _alpha(name: str, adapter: LoraAdapter, rank: int) -> float:
    stored = adapter.modules[name].get("alpha")
    if stored is not None:
        return float(stored)
    for pattern, value in dict(adapter.settings.get("alpha_pattern") or {}).items():
        # As peft matches: a suffix of the name at a dot, read as a regular expression.
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return float(adapter.settings.get("lora_alpha") or rank)


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _not_landed(model: nn.Module, adapter: LoraAdapter) -> list[str]:
    """Names of tensors whose values are not what the layer now holds."""
    lost = []
    for name, parts in adapter.modules.items():
        layer = model.get_submodule(name)
        for part, attribute in (("lora_A.weight", "lora_A"), ("lora_B.weight", "lora_B")):
            holder = getattr(layer, attribute, None)
            held = holder[ADAPTER_NAME].weight if holder and ADAPTER_NAME in holder else None
            if held is None or not torch.equal(held, parts[part].to(held)):
                lost.append(f"{name}.{part}")
    return lost
