"""A picture from an SLA checkpoint in plain diffusers.

    python examples/diffusers_inference.py org/model "a lighthouse in fog" lighthouse.png

The first argument is a diffusers pipeline with sla_attention.pt at its root: a folder or a Hub
repository. docs/diffusers.md has LoRA, single denoisers and training.
"""

import sys

import torch
from diffusers import DiffusionPipeline

from sla_ckpt import enable_sla


def main(checkpoint: str, prompt: str, output: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    session = enable_sla(pipe, checkpoint)
    pipe(prompt).images[0].save(output)
    sys.stderr.write(f"{session.stats.summary()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:4])
