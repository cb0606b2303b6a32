"""Write projections per layer, as TurboDiffusion, FastVideo and those of plug-ins read them."""

from __future__ import annotations

from collections.abc import Mapping

from sla_ckpt.formats.dtypes import encode
from sla_ckpt.formats.layouts.names import layouts
from sla_ckpt.formats.pickle_writer import TensorRecord, dump
from sla_ckpt.formats.torch_writer import encode_torch_zip
from sla_ckpt.formats.twin import TOKEN_OF, encode_safetensors
from sla_ckpt.state import ProjectionTensors


def writable() -> Mapping[str, str]:
    """The layouts that can be written, with the suffix of the file."""
    return {name: item.suffix for name, item in layouts().items() if item.suffix is not None}


def encode_layers(
    layers: Mapping[int, ProjectionTensors],
    layout: str,
    *,
    stem: str,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A file with one projection per layer.

    Args:
        layers: By layer number.
        layout: A key of :func:`writable`: ``"turbodiffusion"`` gives a ``torch.save`` archive,
            ``"fastvideo"`` a safetensors file.
        stem: File name without suffix; ``torch.save`` names the folder in the archive after it.
        metadata: Strings for the safetensors header, besides ``format``.
    """
    template = layouts()[layout].template
    named = {
        template.format(layer=layer, tensor=tensor): (array, dtype)
        for layer, projection in sorted(layers.items())
        for tensor, array, dtype in (
            ("weight", projection.weight, projection.weight_dtype),
            ("bias", projection.bias, projection.bias_dtype),
        )
    }
    if writable()[layout] == ".safetensors":
        return encode_safetensors(
            {
                name: (TOKEN_OF[dtype], array.shape, encode(array, dtype))
                for name, (array, dtype) in named.items()
            },
            {"format": "pt", **(metadata or {})},
        )
    records = {
        name: TensorRecord(dtype, array.shape, str(index))
        for index, (name, (array, dtype)) in enumerate(named.items())
    }
    storages = [encode(array, dtype) for array, dtype in named.values()]
    return encode_torch_zip(dump(records), storages, prefix=stem)
