"""Tell what a file really is from its first bytes, whatever its name says."""

from __future__ import annotations

import re

from sla_ckpt.errors import FormatError

#: How many first bytes :func:`sniff` wants to see.
HEAD_BYTES = 1024

_LEGACY_TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # LONG1 0x1950a86a20f9469cfc6c, STOP
_LFS = b"version https://git-lfs.github.com/spec/"
_SAFETENSORS_HEADER_LIMIT = 100_000_000


def sniff(head: bytes, size: int) -> str:
    """Name the kind of a file.

    Args:
        head: Its first bytes, :data:`HEAD_BYTES` of them if it has that many.
        size: Its whole size.

    Returns:
        ``"empty"``, ``"zip"``, ``"empty-zip"``, ``"safetensors"``, ``"lfs-pointer"``, ``"html"``,
        ``"xml"``, ``"json"``, ``"legacy-torch"``, ``"pickle"``, ``"gzip"``, ``"tar"``,
        ``"numpy"``, ``"gguf"``, ``"7z"``, ``"rar"``, ``"xz"``, ``"bzip2"``, ``"zstd"``,
        ``"zeros"``, ``"text"`` or ``"unknown"``. ``"zip"`` includes every file that ``torch.save``
        writes today; only :mod:`sla_ckpt.formats.torch_zip` can tell those from other archives.
    """
    if size == 0:
        return "empty"
    # First: a header of 0x480 bytes begins like a pickle, one of 0x8b1f bytes like gzip.
    if _is_safetensors(head):
        return "safetensors"
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return "legacy-torch" if head[2:].startswith(_LEGACY_TORCH_MAGIC) else "pickle"
    if head[257:262] == b"ustar":
        return "tar"
    if not head.strip(b"\0"):
        return "zeros"
    return _sniff_text(head)


_MAGICS = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "empty-zip"),
    (_LFS, "lfs-pointer"),
    (b"\x1f\x8b", "gzip"),
    (b"\x93NUMPY", "numpy"),
    (b"GGUF", "gguf"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and 2 <= length <= _SAFETENSORS_HEADER_LIMIT and head[8:9] == b"{"


def _sniff_text(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "html"
    if text.startswith(b"<?xml"):
        return "html" if b"<html" in text else "xml"
    if text.startswith((b"{", b"[")):
        return "json"
    if head and not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", head):
        return "text"
    return "unknown"


def lfs_pointer(head: bytes) -> tuple[str, int] | None:
    """The (sha256, size in bytes) that a Git LFS pointer stands for; None if it is damaged."""
    oid = re.search(rb"^oid sha256:([0-9a-f]{64})\s*$", head, re.MULTILINE)
    size = re.search(rb"^size (\d{1,18})\s*$", head, re.MULTILINE)
    return (oid[1].decode(), int(size[1])) if oid and size else None


_WHAT = {
    "zip": (
        "a zip archive, as torch.save writes",
        "rename it to .pt if it is a state; `sla-ckpt migrate` can read it",
    ),
    "empty-zip": (
        "an empty zip archive",
        "take the state of an earlier checkpoint, or run: sla-ckpt regen",
    ),
    "safetensors": (
        "a safetensors file",
        "if it is the twin, rename it to .safetensors; `sla-ckpt migrate` can read it",
    ),
    "html": (
        "an HTML page, as a download without access gives",
        "download the file again: sla-ckpt pull ORG/MODEL (gated repositories need a token)",
    ),
    "xml": ("an XML document", "download the file again"),
    "json": ("JSON text", "download the file again"),
    "legacy-torch": (
        "a torch file of the old, non-zip format",
        "convert it without running its pickle: sla-ckpt migrate",
    ),
    "pickle": (
        "a bare pickle, not a torch.save archive",
        "never unpickle it; find the file that the trainer wrote, or run: sla-ckpt regen",
    ),
    "gzip": ("gzip-compressed data", "decompress it with gunzip first"),
    "tar": ("a tar archive", "unpack it first"),
    **{
        kind: (f"a {kind} archive", "never unpack and load it; run: sla-ckpt regen")
        for kind in ("7z", "rar", "xz", "bzip2", "zstd")
    },
    "numpy": ("a numpy array", "find the file that the trainer wrote, or run: sla-ckpt regen"),
    "gguf": ("a GGUF file", "find the file that the trainer wrote, or run: sla-ckpt regen"),
    "zeros": (
        "nothing but zero bytes, as a crash during writing leaves",
        "take the state of an earlier checkpoint, or run: sla-ckpt regen",
    ),
    "text": ("plain text", "download the file again"),
    "unknown": (
        "of an unknown kind",
        "take the state of an earlier checkpoint, or run: sla-ckpt regen",
    ),
}


def wrong_kind(kind: str, head: bytes, size: int, *, name: str, wanted: str) -> FormatError:
    """The error for a file that is not what its name promises; says what it really is."""
    if kind == "empty":
        return FormatError(
            f"{name} is empty (0 bytes)",
            kind=kind,
            hint="take the state of an earlier checkpoint, or run: sla-ckpt regen",
            path=name,
        )
    if kind == "lfs-pointer":
        pointer = lfs_pointer(head)
        real = f"; the real file has {pointer[1]:,} bytes, sha256 {pointer[0]}" if pointer else ""
        return FormatError(
            f"{name} is a Git LFS pointer of {size} bytes, not the file itself{real}",
            kind=kind,
            hint="fetch the real file: git lfs pull, or sla-ckpt pull ORG/MODEL",
            path=name,
        )
    what, hint = _WHAT[kind]
    return FormatError(
        f"{name} is {what}, not {wanted} ({size:,} bytes)", kind=kind, hint=hint, path=name
    )
