"""A layout: how Acme's trainer names its projections, one per layer."""

from sla_ckpt.plugins import Layout

LAYOUT = Layout(
    title="Acme, per layer",
    template="stack.{layer}.mixer.linear_out.{tensor}",
    suffix=".safetensors",
)
