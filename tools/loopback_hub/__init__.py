"""A Hub on 127.0.0.1 that the real huggingface_hub and hf_xet clients talk to."""

from .context import Settings
from .faults import Fault
from .server import LoopbackHub

__all__ = ["Fault", "LoopbackHub", "Settings"]
