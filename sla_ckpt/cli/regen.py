"""``sla-ckpt regen``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sla_ckpt.cli import _options
from sla_ckpt.cli._output import Output
from sla_ckpt.cli._progress import progress_for
from sla_ckpt.errors import EXIT_FINDINGS, EXIT_OK, MissingExtraError

F = TypeVar("F", bound=Callable[..., Any])

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_POSITIVE = click.IntRange(min=1)


def _group(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


_training = _group(
    click.option("--steps", type=_POSITIVE, default=1, show_default=True, help="Training steps."),
    click.option(
        "--method",
        type=click.Choice(["auto", "calibrate", "train"]),
        default="auto",
        show_default=True,
        help="Calibrate to dense attention, train on the model's own loss, or both.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["auto", "anneal", "lbfgs", "adamw"]),
        default="auto",
        show_default=True,
        help="anneal: a step is a sweep of up to 72 updates, each on fresh noise; lbfgs: up to 20 "
        "loss evaluations; adamw: one update.",
    ),
    click.option("--lr", type=float, help="Learning rate of adamw.  [default: 0.01]"),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of noise, noise levels and made-up samples.",
    ),
    click.option("--draws", type=_POSITIVE, help="Draws of noise per sample; derived by default."),
    click.option("--evaluations", type=click.IntRange(2, 200), help="Loss evaluations per step."),
)
_sla = _group(
    click.option(
        "--dtype",
        type=click.Choice(["bf16", "fp16", "both"]),
        default="bf16",
        show_default=True,
        help="Pairs to make: the dtype that the model runs in.",
    ),
    click.option("--topk", type=float, help="Share of key blocks kept; default: the old file's."),
    click.option("--blkq", type=click.IntRange(min=1), help="Query block length."),
    click.option("--blkk", type=click.IntRange(min=1), help="Key block length."),
    click.option(
        "--feature-map",
        type=click.Choice(["softmax", "elu", "relu"]),
        help="Feature map of the linear branch.",
    ),
    click.option("--sla-config", metavar="DICT", help="All settings, as JSON or a Python dict."),
    click.option("--variant", type=click.Choice(["main", "sla-1"]), help="Which SLA made it."),
)
_samples = _group(
    click.option("--data", type=_FOLDER, help="Trainer's VAE and text caches."),
    click.option("--images", type=_FOLDER, help="A few pictures, captions in .txt beside them."),
    click.option("--inputs", type=_FILE, help="Safetensors with forward() arguments and target."),
    click.option("--samples", type=_POSITIVE, default=8, show_default=True, help="At most."),
    click.option("--resolution", metavar="WxH", help="Pixels of the samples, as 1024x1024."),
    click.option("--tokens", type=_POSITIVE, help="Least image tokens, instead of a resolution."),
    click.option("--frames", type=_POSITIVE, help="Frames of a video sample."),
)
_model = _group(
    click.option("--base-model", metavar="DIR|ORG/MODEL", help="What a LoRA was trained on."),
    click.option("--ema", is_flag=True, help="Use the EMA copy of the weights."),
    click.option("--denoiser", metavar="FOLDER", help="Another folder, as transformer_2."),
)
_running = _group(
    click.option(
        "--device",
        default="cuda",
        show_default=True,
        help="cuda, cuda:1, cpu, or auto to spread the model over all cards.",
    ),
    click.option(
        "--kernel",
        type=click.Choice(["auto", "triton", "reference", "external"]),
        default="auto",
        show_default=True,
        help="What computes SLA; auto: triton on CUDA, else reference.",
    ),
    click.option("--offload", is_flag=True, help="Keep the weights in host memory."),
)
_writing = _group(
    click.option("--no-backup", is_flag=True, help="Do not keep the old file beside the new."),
    click.option("--plot", type=_FILE, metavar="FILE", help="Draw losses and errors (png, svg)."),
)


@click.command("regen", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@_training
@_sla
@_samples
@_model
@_running
@_options.config
@_writing
@_options.dry_run
@_options.output_format("text", "json")
@_options.quiet
def command(
    checkpoint: Path | None,
    plot: Path | None,
    output_format: str,
    quiet: bool,
    no_backup: bool,
    resolution: str | None,
    config: str | None,
    sla_config: str | None,
    **values: Any,
) -> int:
    """Regenerate sla_attention.pt with a short SLA run.

    CHECKPOINT is a checkpoint folder or a trainer's output directory (its newest checkpoint); the
    current directory by default. The backbone is read and never written. The new state is written
    only if held-out samples prefer it to what is there; otherwise nothing changes, exit code 1.

    Give real samples (--data, --images): without them quality cannot be confirmed.
    """
    if plot is not None:
        from sla_ckpt.pictures import check_picture

        check_picture(plot)
    from sla_ckpt.regen.read_ahead import read_ahead

    read_ahead(
        checkpoint,
        base_model=values["base_model"],
        ema=values["ema"],
        denoiser=values["denoiser"],
    )
    try:
        from sla_ckpt.regen.engine import regenerate
        from sla_ckpt.regen.options import RegenOptions, settings_from_text
        from sla_ckpt.regen.report import render_text
    except ImportError as error:
        raise MissingExtraError("regen", "regen", error.name or "torch") from error
    names = ("topk", "blkq", "blkk", "feature_map")
    given = {name: values.pop(name) for name in names}
    options = RegenOptions(
        settings=settings_from_text(sla_config) if sla_config is not None else None,
        overrides=tuple((name, value) for name, value in given.items() if value is not None),
        resolution=_options.pixels(resolution),
        config=Path(config) if config is not None else None,
        backup=not no_backup,
        **values,
    )
    output = Output(quiet=quiet)
    with progress_for(output) as progress:
        result = regenerate(checkpoint, options, progress=progress)
    for warning in result.warnings:
        output.warning(warning)
    if plot is not None and result.is_main:
        from sla_ckpt.regen.plot import draw

        draw(result, plot)
        output.note(f"wrote {plot}")
    if result.is_main:
        if output_format == "json":
            output.json(result.to_dict())
        else:
            output.data(render_text(result))
    return EXIT_OK if result.ok else EXIT_FINDINGS
