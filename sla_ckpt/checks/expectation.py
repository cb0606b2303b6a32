"""Which pairs the checkpoint at hand should hold, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sla_ckpt.checkpoint.runconfig import parse_resolution
from sla_ckpt.errors import UsageError
from sla_ckpt.state import PairKey

if TYPE_CHECKING:
    from sla_ckpt.checks.context import Context

#: What a trainer with mixed precision uses unless told otherwise.
DEFAULT_DTYPE = "bf16"
HALF_DTYPES = ("bf16", "fp16")


@dataclass(frozen=True)
class Expectation:
    """What this model materialises.

    Attributes:
        head_dims: Certain head_dims.
        possible: head_dims that may also appear.
        dtype: dtype token of the queries, None when it cannot be known.
        exact: Pairs the user named with ``--expect``; they replace everything else.
        basis: Where this comes from, for messages.
        unknown: Why nothing is expected, when nothing can be derived.
        unknown_help: The next step then.
    """

    head_dims: tuple[int, ...] = ()
    possible: tuple[int, ...] = ()
    dtype: str | None = None
    exact: tuple[PairKey, ...] = ()
    basis: str = ""
    unknown: str | None = None
    unknown_help: str | None = None

    @property
    def known(self) -> bool:
        return self.unknown is None

    @property
    def pairs(self) -> tuple[PairKey, ...]:
        """The expected pairs, an unknown dtype taken as the default one."""
        if self.exact:
            return self.exact
        return tuple(PairKey(h, self.dtype or DEFAULT_DTYPE) for h in self.head_dims)

    def dtype_for(self, head_dim: int, compute_dtype: str | None) -> str | None:
        """The dtype token a pair of this head_dim takes here; None when it cannot be told.

        Args:
            head_dim: Of the pair.
            compute_dtype: What the model trains and infers in, if that is known.
        """
        exact = {pair.dtype for pair in self.exact if pair.head_dim == head_dim}
        return exact.pop() if len(exact) == 1 else self.dtype or compute_dtype

    def is_stray(self, key: PairKey) -> bool:
        """Whether this model can never have made the pair."""
        if not self.known:
            return False
        if self.exact:
            return key.head_dim not in {pair.head_dim for pair in self.exact}
        return key.head_dim not in self.head_dims and key.head_dim not in self.possible

    def satisfied_by(self, pair: PairKey, found: tuple[PairKey, ...]) -> bool:
        """Whether ``pair`` is in the file; with an unknown dtype, either half dtype will do."""
        if pair in found:
            return True
        if self.exact or self.dtype is not None:
            return False
        return any(PairKey(pair.head_dim, dtype) in found for dtype in HALF_DTYPES)


def expect(context: Context) -> Expectation:
    """Derive the expectation from ``--expect``, a config, or an adapter's metadata.

    Raises:
        UsageError: ``--base-model`` has no usable config.
    """
    options, checkpoint = context.options, context.checkpoint
    if options.expect:
        return Expectation(exact=tuple(dict.fromkeys(options.expect)), basis="--expect")
    config = context.model_config
    if config is not None:
        from sla_ckpt.pairs.table import expected_head_dims

        try:
            trained = expected_head_dims(config)
            plain = expected_head_dims(config, trainer="diffusers")
        except UsageError as error:
            return Expectation(unknown=error.message, unknown_help=error.hint)
        return Expectation(
            head_dims=trained.head_dims,
            possible=tuple(sorted({*trained.possible, *plain.head_dims, *plain.possible})),
            dtype=context.compute_dtype,
            basis=trained.class_name,
        )
    if checkpoint.denoiser is not None:
        fault = checkpoint.denoiser.config_fault or f"{checkpoint.denoiser.config_path} is missing"
        return Expectation(unknown=fault, unknown_help="name the pairs: --expect 128:bf16")
    return _from_architecture(context)


def _from_architecture(context: Context) -> Expectation:
    """An adapter does not carry its base model's config; its metadata names the family."""
    from sla_ckpt.pairs.architecture import family_of_architecture

    name = architecture_of(context)
    ask = "name the pairs with --expect 128:bf16, or the base model with --base-model DIR"
    if name is None:
        return Expectation(unknown="nothing here names the model", unknown_help=ask)
    guess = family_of_architecture(name)
    if guess is None:
        return Expectation(unknown=f"unknown architecture {name[:80]!r}", unknown_help=ask)
    if guess.head_dims is None:
        return Expectation(unknown=guess.note or f"{name} is ambiguous", unknown_help=ask)
    return Expectation(
        head_dims=guess.head_dims,
        possible=guess.possible,
        dtype=context.compute_dtype,
        basis=f"architecture {name}",
    )


def architecture_of(context: Context) -> str | None:
    """The model family named by the adapter's metadata or the trainer's manifest."""
    name = context.checkpoint.adapter_metadata.get("modelspec.architecture")
    if name:
        return name
    manifest = context.checkpoint.manifest or {}
    metadata = manifest.get("metadata")
    value = metadata.get("modelspec_architecture") if isinstance(metadata, dict) else None
    if isinstance(value, str) and value:
        return value
    return context.run_config.text("model_family") if context.run_config else None


def tokens_of(context: Context) -> tuple[int, str] | None:
    """Attention tokens at the resolution in use, and where the number comes from.

    Raises:
        UsageError: ``--resolution`` was given, but this model's tokens cannot be computed.
    """
    options = context.options
    if options.tokens is not None:
        return options.tokens, "--tokens"
    config = context.model_config
    if options.resolution is not None:
        if config is None:
            raise UsageError(
                "--resolution needs the model's config.json, which is not here",
                hint="use --tokens N, or --base-model DIR for an adapter",
            )
        found = _tokens_at(context, options.resolution, "--resolution")
        if found is None:
            raise UsageError(
                f"cannot compute the tokens of {config.get('_class_name')} from --resolution",
                hint="use --tokens N",
            )
        return found
    if config is None:
        return None
    recorded = context.checkpoint.adapter_metadata.get("modelspec.resolution", "")
    if (pixels := parse_resolution(recorded)) is not None:
        return _tokens_at(context, pixels, "the adapter's metadata")
    if context.run_config is not None and (pixels := context.run_config.resolution) is not None:
        return _tokens_at(context, pixels, context.run_config.path)
    return None


def _tokens_at(context: Context, pixels: tuple[int, int], where: str) -> tuple[int, str] | None:
    from sla_ckpt.pairs.tokens import tokens_at

    assert context.model_config is not None
    try:
        tokens = tokens_at(context.model_config, *pixels)
    except UsageError:
        if where == "--resolution":
            raise
        return None
    return (tokens, f"{pixels[0]}x{pixels[1]} from {where}") if tokens is not None else None
