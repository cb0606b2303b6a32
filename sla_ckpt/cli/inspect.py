"""``sla-ckpt inspect``."""

from __future__ import annotations

import click

from sla_ckpt.checks.summary import PairSummary, StateSummary
from sla_ckpt.cli import _options
from sla_ckpt.cli._completing import complete_targets
from sla_ckpt.cli._output import Output
from sla_ckpt.paths import expand
from sla_ckpt.text import one_line


@click.command("inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", required=False, default=".", shell_complete=complete_targets)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Draw each projection and its singular values (.png, .svg, .pdf).",
)
@_options.config
@_options.revision
@_options.token
@_options.output_format("text", "json")
@_options.quiet
def command(
    target: str,
    plot: str | None,
    config: str | None,
    revision: str | None,
    token: str | None,
    output_format: str,
    quiet: bool,
) -> int:
    """Show what a state holds: settings, pairs, shapes, dtypes, norms, rank, origin.

    TARGET is as for verify.
    """
    from sla_ckpt.checks.context import Context, VerifyOptions
    from sla_ckpt.checks.summary import summarise
    from sla_ckpt.checks.verify import open_target

    if plot is not None:
        from sla_ckpt.pictures import check_picture

        check_picture(expand(plot))
    source, note = open_target(_options.at_revision(target, revision), token=token)
    options = VerifyOptions(config=_options.optional_path(config))
    summary = summarise(Context(source, options))
    output = Output(quiet=quiet)
    if note:
        output.note(f"{summary.target}: {note}")
    if output_format == "json":
        output.json(summary.to_dict())
    else:
        output.data(_text(summary))
    if plot is not None:
        from sla_ckpt.checks.plot import plot_state

        plot_state(summary, expand(plot))
        output.note(f"wrote {plot}")
    return 0


def _text(summary: StateSummary) -> str:
    lines = [
        f"{click.style(one_line(summary.target), bold=True)}  ({summary.kind})",
        f"  file      {one_line(summary.path)}, {summary.size:,} bytes, "
        f"sha256 {summary.sha256[:16]}…",
    ]
    if summary.settings is not None:
        values = ", ".join(f"{k} {v}" for k, v in summary.settings.to_dict().items())
        lines.append(f"  settings  {values}")
    else:
        lines.append("  settings  none")
    lines.append(f"  expected  {', '.join(summary.expected) or 'unknown'}")
    if summary.origin:
        shown = ", ".join(f"{k} {v}" for k, v in sorted(summary.origin.items()))
        lines.append(f"  origin    {one_line(shown)}")
    else:
        lines.append("  origin    not recorded (written by a trainer)")
    lines += [f"  note      {one_line(note)}" for note in summary.notes]
    lines += [_pair_line(pair) for pair in summary.pairs]
    return "\n".join(lines)


def _pair_line(pair: PairSummary) -> str:
    shape = "×".join(map(str, pair.weight_shape)) if pair.weight_shape is not None else "no weight"
    parts = [shape, "/".join(pair.dtypes) or "no tensor"]
    if not pair.finite:
        parts.append(click.style("NaN or Inf", fg="red"))
    elif not pair.trained:
        parts.append(click.style("all zero, never trained", fg="yellow"))
    else:
        if pair.norm is not None:
            parts.append(f"norm {pair.norm:.4g}")
        if pair.bias_norm is not None:
            parts.append(f"bias norm {pair.bias_norm:.4g}")
        if pair.rank is not None and pair.weight_shape is not None:
            parts.append(f"rank {pair.rank}/{min(pair.weight_shape)}")
        if pair.zeros:
            parts.append(f"{pair.zeros:.1%} zeros")
        parts.append("trained")
    if pair.stray:
        parts.append("not a pair of this model")
    return f"  {click.style(one_line(pair.name), fg='cyan'):<10}  {', '.join(parts)}"
