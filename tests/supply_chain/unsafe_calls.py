"""Find, in a module's syntax tree, what executes data: pickles, source text, shells."""

from __future__ import annotations

import ast
from collections.abc import Iterator

#: Modules whose loaders run what they read. ``pickletools`` only looks.
UNSAFE_MODULES = frozenset(
    {
        "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib",
        "jsonpickle", "pickle5", "xmlrpc", "torch.package", "pty", "code", "codeop",
    }
)  # fmt: skip
UNSAFE_CALLS = frozenset(
    {
        "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec",
        "builtins.compile", "builtins.__import__", "os.system", "os.popen", "os.execv", "os.execve",
        "os.execvp", "os.execvpe", "os.execl", "os.execle", "os.execlp", "os.execlpe", "os.spawnl",
        "os.spawnv", "os.spawnvp", "os.posix_spawn", "os.startfile", "posix.system",
        "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
        "torch.hub.load", "torch.jit.load", "torch.serialization.add_safe_globals",
        "torch.serialization.safe_globals", "yaml.unsafe_load", "yaml.full_load",
        "yaml.unsafe_load_all", "yaml.full_load_all", "pandas.read_pickle",
        "numpy.lib.format.read_array", "importlib.util.spec_from_file_location", "runpy.run_path",
        "types.FunctionType", "types.CodeType",
    }
)  # fmt: skip
#: All that may be used of the pickle module: torch raises them for bad files.
_PICKLE_ERRORS = frozenset({"pickle.UnpicklingError", "pickle.PickleError"})
_LOADS = ("torch.load", "torch.serialization.load")
_YAML_LOADS = ("yaml.load", "yaml.load_all")
_SAFE_LOADERS = frozenset({"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader"})


def unsafe_calls(source: str) -> list[str]:
    """``"line: what"`` for each unsafe import or call of a module.

    Names are resolved through imports and their aliases, and through ``getattr`` with a literal
    name; what is assembled at run time is out of reach.
    """
    tree = ast.parse(source)
    names = _imported(tree)
    errors_only = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _resolve(node, names) in _PICKLE_ERRORS
    }
    found = [
        f"{node.lineno}: {what}"
        for node in ast.walk(tree)
        if id(node) not in errors_only
        for what in _faults(node, names)
    ]
    return sorted(found, key=lambda line: int(line.partition(":")[0]))


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    names.setdefault("np", "numpy")
    return names


def _faults(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for item in node.names:
            if item.name != "pickle" and _is_unsafe_module(item.name):
                yield f"import {item.name}"
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for item in node.names:
            full = f"{node.module}.{item.name}"
            unsafe = _is_unsafe_module(node.module) or full in UNSAFE_MODULES | UNSAFE_CALLS
            if unsafe and full not in _PICKLE_ERRORS:
                yield f"import {full}"
    elif isinstance(node, ast.Call):
        yield from _call_faults(node, names)
    elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
        # Also uncalled: it could be passed on, as could the module.
        used = _resolve(node, names)
        is_pickle = isinstance(node, ast.Name) and names.get(node.id) == "pickle"
        if used in UNSAFE_CALLS or is_pickle:
            yield f"use of {used}"


def _is_unsafe_module(name: str) -> bool:
    return any(name == unsafe or name.startswith(f"{unsafe}.") for unsafe in UNSAFE_MODULES)


def _call_faults(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    called = _resolve(node.func, names)
    keywords = {item.arg: item.value for item in node.keywords}
    if called in _LOADS and not _is_true(keywords.get("weights_only")):
        yield f"{called} without weights_only=True"
    if "shell" in keywords and not _is_false(keywords["shell"]):
        yield f"{called} with shell"
    if "allow_pickle" in keywords and not _is_false(keywords["allow_pickle"]):
        yield f"{called} with allow_pickle"
    if called in _YAML_LOADS:
        loader = keywords.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
        if loader is None or _resolve(loader, names) not in _SAFE_LOADERS:
            yield f"{called} without a safe loader"
    literals = [item.value if isinstance(item, ast.Constant) else None for item in node.args]
    if called == "importlib.import_module" and literals and _is_unsafe_module(str(literals[0])):
        yield f"import of {literals[0]}"
    if called == "getattr" and len(literals) > 1:
        full = f"{_resolve(node.args[0], names)}.{literals[1]}"
        if full in UNSAFE_CALLS or full in _LOADS:
            yield f"getattr of {full}"
    if any(item.arg is None for item in node.keywords) and called in _LOADS:
        yield f"{called} with keywords that cannot be seen"


def _resolve(node: ast.AST, names: dict[str, str]) -> str:
    """``a.b.c`` with its first name resolved; empty when it is no plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _resolve(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False
