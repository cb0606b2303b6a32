"""What a pickle may name: the allow-list, and the inert values that stand for globals."""

from __future__ import annotations

from dataclasses import dataclass

from sla_ckpt.formats.dtypes import STORAGE_CLASSES, STORED_AS

_REBUILDS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
ALLOWED = (
    _REBUILDS
    | {"collections.OrderedDict", "torch.Size", "torch.device", "_codecs.encode"}
    | {f"torch.{name}" for name in STORAGE_CLASSES}
    | {"torch.storage.UntypedStorage"}
    | {f"torch.{name}" for name in STORED_AS}
)


@dataclass(frozen=True)
class StorageRef:
    """A storage the pickle refers to.

    Attributes:
        key: Names its entry, ``data/<key>``.
        dtype: torch name of its element type; None for untyped bytes.
        count: Elements (bytes when untyped).
    """

    key: str
    dtype: str | None
    count: int


class TorchName(str):
    """A dtype or device, as torch prints it; unlike text it can be no dict key and no name."""

    __slots__ = ()


@dataclass(frozen=True)
class GlobalName:
    """A global the pickle names; inert."""

    name: str
