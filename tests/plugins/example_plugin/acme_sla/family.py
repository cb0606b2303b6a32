"""A family: how regen runs Acme's model. Imported only by regen, so torch may be used here."""

from dataclasses import dataclass
from typing import Any

from sla_ckpt.regen.families.base import BaseAdapter, Conditioning


@dataclass(frozen=True)
class AcmeAdapter(BaseAdapter):
    """Plain latents and text, flow matching, the noise level as a number from 0 to 1000."""

    name: str = "acme"
    class_names: tuple[str, ...] = ("AcmeTransformer2DModel",)

    def tiny_config(self) -> dict[str, Any]:
        return {
            "_class_name": "AcmeTransformer2DModel",
            "in_channels": 4,
            "width": 32,
            "heads": 2,
            "text_dim": 16,
        }

    def conditioning(self, config: Any) -> dict[str, Conditioning]:
        return {"prompt_embeds": Conditioning((None, config["text_dim"]), scale=1.0)}

    def make_inputs(self, model: Any, batch: Any, noisy: Any, t: Any) -> dict[str, Any]:
        return {
            "hidden_states": noisy,
            "encoder_hidden_states": batch.conditioning["prompt_embeds"].to(noisy),
            "timestep": t.float() * 1000,
        }


ADAPTER = AcmeAdapter()
