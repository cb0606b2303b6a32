"""Take SLA's trailing parameter groups out of an ``optimizer.bin``, so that a resume works.

SLA's parameters join the optimizer at the first forward pass, so a checkpoint has groups that a
fresh process lacks when it loads the file, and ``load_state_dict`` raises. Without them it loads;
the groups are added afresh at the first forward pass, and only the moments of ``proj_l`` are lost.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from sla_ckpt.errors import FormatError, MissingExtraError, SlaCkptError, WriteError
from sla_ckpt.formats.optimizer import OptimizerStructure, read_optimizer
from sla_ckpt.migrate.plan import FileChange, Problem, Step, fingerprint
from sla_ckpt.text import count


def plan_optimizer(root: Path, name: str) -> tuple[Step, FileChange] | Problem | None:
    """The repair of one optimizer file; None when it has no SLA group or cannot be judged.

    Args:
        root: The checkpoint.
        name: ``optimizer.bin``, ``optimizer_1.bin``, …
    """
    path = root / name
    try:
        structure = read_optimizer(path, name=name)
    except SlaCkptError:
        return None
    groups = structure.sla_groups()
    if not groups:
        return None
    if not has_torch():
        return Problem(
            f"{name} has {count(len(groups), 'SLA parameter group')}, and its repair needs torch",
            "run: pip install 'sla-ckpt[torch]'",
            "SLA304",
        )
    sizes = [len(group.params) for group in structure.groups]
    step = Step(
        "SLA parameter groups dropped",
        name,
        f"groups of {_sizes(sizes)} parameters",
        f"groups of {_sizes(sizes[: groups[0]])}; only proj_l's moments go",
        "SLA304",
    )
    change = FileChange(
        name,
        lambda staged: _rewrite(path, staged, groups[0]),
        lambda staged: _compare(path, staged, structure, groups[0]),
        fingerprint(path),
    )
    return step, change


def _sizes(sizes: list[int]) -> str:
    return ", ".join(f"{size:,}" for size in sizes)


def has_torch() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


def _load(path: Path) -> dict[str, Any]:
    """Load with torch's weights-only loader; tensors stay on disk until they are used."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("repairing an optimizer", "torch", "torch") from error
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (RuntimeError, ValueError, OSError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise FormatError(
            f"{path.name}: torch's weights-only loader refuses it: {str(error).splitlines()[0]}",
            kind="optimizer",
            hint="resume without the optimizer's state, or keep the file as it is",
            path=str(path),
        ) from error
    assert isinstance(loaded, dict)
    return loaded


def _rewrite(path: Path, staged: Path, keep: int) -> None:
    import torch

    value = _load(path)
    dropped = {param for group in value["param_groups"][keep:] for param in group["params"]}
    value["param_groups"] = value["param_groups"][:keep]
    value["state"] = {key: entry for key, entry in value["state"].items() if key not in dropped}
    try:
        torch.save(value, staged)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a full disk into a RuntimeError about its own counters.
        reason = error.strerror if isinstance(error, OSError) else None
        raise WriteError(
            f"cannot write {path.name}: {reason or 'the disk does not take all of it'}",
            hint="check free space; the old file is untouched",
            path=str(path),
        ) from error


def _compare(path: Path, staged: Path, before: OptimizerStructure, keep: int) -> None:
    """What stays must be what was: groups, options, and every tensor bit by bit."""
    after = read_optimizer(staged, name=path.name)
    old, new = _load(path), _load(staged)
    kept = {param for group in before.groups[:keep] for param in group.params}
    equal = (
        not after.sla_groups()
        and new["param_groups"] == old["param_groups"][:keep]
        and new["state"].keys() == old["state"].keys() & kept
        and all(_same(new["state"][key], old["state"][key]) for key in new["state"])
        and new.keys() == old.keys()
    )
    if not equal:
        raise WriteError(
            f"{path.name} reads back differently after its repair",
            hint="check the disk; the old file is untouched",
            path=str(path),
        )


def _same(first: Any, second: Any) -> bool:
    import torch

    if isinstance(first, torch.Tensor):
        return (
            isinstance(second, torch.Tensor)
            and first.dtype == second.dtype
            and first.shape == second.shape
            and torch.equal(_bits(first), _bits(second))
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    return bool(first == second)


def _bits(tensor: Any) -> Any:
    """Bytes of a tensor, so that NaN equals NaN."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)
