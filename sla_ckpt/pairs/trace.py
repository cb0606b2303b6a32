"""Which pairs a model materialises, by running it without weights.

The model is built on the meta device, where tensors have shapes but no data, and one forward pass
is recorded through a TorchFunctionMode: 32 billion parameters take seconds and no memory. Some
models look at values (``.item()``, ``bincount``) and cannot run there; those are built on the CPU
with one layer of each kind and random weights, which makes the same pairs.

Needs the ``[regen]`` extra. The mode serves discovery only: it is not active when gradient
checkpointing recomputes a forward pass, so it must not be used to replace attention.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sla_ckpt.errors import MissingExtraError, UsageError
from sla_ckpt.pairs.config import config_class_name
from sla_ckpt.pairs.table import UnknownModelError
from sla_ckpt.state import PairKey, normalise_dtype

if TYPE_CHECKING:
    import torch

#: Makes forward() arguments: (config, device, dtype) -> keyword arguments.
InputMaker = Callable[[Mapping[str, Any], "torch.device", "torch.dtype"], dict[str, Any]]

_TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# What models raise for configs and inputs that do not fit them.
_MODEL_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
_TEXT_TOKENS = 16
_DEFAULT_TOKENS = 16
_PLUGIN_SIDE = 256
# Config entries that count layers of one kind; layers of a kind all attend alike.
_DEPTH_KEYS = (
    "num_layers",
    "num_single_layers",
    "num_refiner_layers",
    "num_mmdit_layers",
    "num_single_dit_layers",
    "num_text_blocks",
    "num_visual_blocks",
    "n_layers",
    "n_refiner_layers",
)


@dataclass(frozen=True)
class TracedCall:
    """Attention calls of one kind.

    Attributes:
        pair: head_dim and dtype of the queries.
        query_length: Tokens that attend.
        key_length: Tokens attended to.
        dense_reason: Why SLA leaves the call alone (``"mask"``, ``"cross-attention"``, …), or
            None when it takes it.
        count: How many such calls one forward pass makes.
    """

    pair: PairKey
    query_length: int
    key_length: int
    dense_reason: str | None
    count: int


@dataclass(frozen=True)
class TracedPairs:
    """What one forward pass of a model does.

    Attributes:
        class_name: The diffusers class.
        device: ``"meta"``, or ``"cpu"`` for models that cannot run there.
        calls: Every kind of attention call, ascending.
    """

    class_name: str
    device: str
    calls: tuple[TracedCall, ...]

    @property
    def pairs(self) -> tuple[PairKey, ...]:
        """The pairs SLA would materialise, ascending."""
        return tuple(sorted({call.pair for call in self.calls if call.dense_reason is None}))

    @property
    def head_dims(self) -> tuple[int, ...]:
        return tuple(sorted({pair.head_dim for pair in self.pairs}))


def trace_pairs(
    config: Mapping[str, Any],
    *,
    dtype: str = "bfloat16",
    tokens: int | None = None,
    inputs: InputMaker | None = None,
    model_class: type[Any] | None = None,
) -> TracedPairs:
    """Run a model of this config without weights and record its attention.

    Args:
        config: Parsed ``config.json`` of the denoiser.
        dtype: Of weights and inputs, any spelling.
        tokens: At least this many image tokens; few are enough to see the pairs.
        inputs: Makes the forward() arguments; the family's adapter does by default.
        model_class: For classes that diffusers does not have.

    Raises:
        MissingExtraError: torch or diffusers is not installed.
        UnknownModelError: diffusers has no such class.
        UsageError: The model cannot be built or run from this config.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise MissingExtraError("tracing a model", "regen", error.name or "diffusers") from error

    class_name = config_class_name(config)
    cls = model_class or (getattr(diffusers, class_name, None) if class_name else None)
    if cls is None or class_name is None:
        raise UnknownModelError(class_name)
    torch_dtype: torch.dtype = getattr(
        torch, _TORCH_NAMES.get(normalise_dtype(dtype), normalise_dtype(dtype))
    )
    maker = inputs or _adapter_inputs(tokens or _DEFAULT_TOKENS)
    try:
        calls = _run(cls, config, maker, torch.device("meta"), torch_dtype)
        return TracedPairs(class_name, "meta", calls)
    except _MODEL_ERRORS:
        # Mostly because values are needed; what goes wrong for another reason does so again below.
        pass
    try:
        calls = _run(cls, _shallow(config), maker, torch.device("cpu"), torch_dtype)
    except _MODEL_ERRORS as error:
        raise UsageError(
            f"a {class_name} of this config does not run: {type(error).__name__}: {error}",
            hint="check config.json, or name the pairs: --expect 128:bf16",
        ) from error
    return TracedPairs(class_name, "cpu", calls)


def _run(
    cls: type[Any],
    config: Mapping[str, Any],
    maker: InputMaker,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[TracedCall, ...]:
    import torch

    with warnings.catch_warnings(), torch.device(device), torch.no_grad():
        warnings.simplefilter("ignore")
        model = cls.from_config(dict(config)).eval()
        _cast(model, dtype)
        arguments = maker(model.config, device, dtype)
        with _new_recorder() as recorder:
            model(**arguments)
    calls: tuple[TracedCall, ...] = recorder.calls()
    return calls


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast a model as loading does: diffusers keeps some submodules in float32."""
    keep = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not keep.intersection(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def _shallow(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same model with one layer of each kind."""
    shallow = dict(config)
    for key in _DEPTH_KEYS:
        if isinstance(shallow.get(key), int):
            shallow[key] = min(shallow[key], 1)
    if isinstance(shallow.get("llama_layers"), list | tuple):
        # One text layer per block: HiDream checks that they match.
        blocks = shallow.get("num_layers", 1) + shallow.get("num_single_layers", 1)
        shallow["llama_layers"] = list(shallow["llama_layers"])[:blocks]
    return shallow


def _adapter_inputs(tokens: int) -> InputMaker:
    def make(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        import torch

        from sla_ckpt.errors import RegenError
        from sla_ckpt.regen.families.base import Size, collate
        from sla_ckpt.regen.families.registry import adapter_for

        adapter = adapter_for(config)
        with torch.device("cpu"):
            try:
                size = adapter.size_for_tokens(config, tokens)
            except RegenError:
                # A plug-in that does not count tokens: any size shows the pairs.
                size = Size(_PLUGIN_SIDE, _PLUGIN_SIDE)
            sample = adapter.prepare(
                config,
                adapter.synthetic_sample(
                    config,
                    height=size.height,
                    width=size.width,
                    text_tokens=_TEXT_TOKENS,
                    generator=torch.Generator().manual_seed(0),
                ),
            )
            batch = collate([sample])
        # Sizes come from the model's config, so the model stands for itself here.
        return adapter.make_inputs(
            _ConfigOnly(config),
            batch.to(device, dtype),
            batch.latents.to(device, dtype),
            torch.full((1,), 0.5, device=device),
        )

    return make


class _ConfigOnly:
    """Stands for a model where only its config is looked at."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config


def _new_recorder() -> Any:
    """A TorchFunctionMode that counts attention calls; a class of torch's, hence made late."""
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    from sla_ckpt.attention.routing import dense_reason

    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

    class Recorder(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Counter[tuple[PairKey, int, int, str]] = Counter()

        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Iterable[type],
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func is F.scaled_dot_product_attention:
                given = {**dict(zip(names, args, strict=False)), **kwargs}
                self.record(**{name: value for name, value in given.items() if name != "scale"})
            return func(*args, **kwargs)

        def record(self, query: torch.Tensor, key: torch.Tensor, **others: Any) -> None:
            reason = dense_reason(query, key, **others) or ""
            pair = PairKey(query.shape[-1], normalise_dtype(str(query.dtype)))
            self.seen[pair, query.shape[-2], key.shape[-2], reason] += 1

        def calls(self) -> tuple[TracedCall, ...]:
            return tuple(
                TracedCall(pair, queries, keys, reason or None, count)
                for (pair, queries, keys, reason), count in sorted(self.seen.items())
            )

    return Recorder()
