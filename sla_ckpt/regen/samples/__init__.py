"""Samples for regeneration: caches, pictures, stored calls, or made-up ones."""

from sla_ckpt.regen.samples.load import load_samples
from sla_ckpt.regen.samples.request import FixedCall, SampleRequest, SampleSet

__all__ = ["FixedCall", "SampleRequest", "SampleSet", "load_samples"]
