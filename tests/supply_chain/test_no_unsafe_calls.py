"""Nothing of ours executes data: no pickle, no source text, no shell, no trusting torch.load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.supply_chain.unsafe_calls import unsafe_calls

ROOT = Path(__file__).parents[2]
#: Where it is the purpose; each entry must still be true.
EXCEPTIONS = {
    # runs the Python of our own pages, as their test
    "tools/docs/session.py": {"use of exec", "use of compile"},
}
FOLDERS = ("sla_ckpt", "tools", "benchmarks", "examples", "docs")


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_executes_data(folder: str) -> None:
    modules = sorted((ROOT / folder).rglob("*.py"))
    assert modules
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for path in modules
        if (calls := unsafe_calls(path.read_text(encoding="utf-8")))
    }
    what = {name: {call.partition(": ")[2] for call in calls} for name, calls in found.items()}
    expected = {name: calls for name, calls in EXCEPTIONS.items() if name.startswith(f"{folder}/")}
    assert what == expected, found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(data)",
        "import pickle as p\np.loads(data)",
        "import pickle\nread = pickle.load",
        "import pickle\nuse(pickle)",
        "import pickle\ntorch.load(path, weights_only=True, pickle_module=pickle)",
        "from pickle import loads",
        "import _pickle",
        "from cloudpickle import load",
        "import marshal",
        "import shelve",
        "import dill",
        "def f():\n    import pickle\n    return pickle.Unpickler(f)",
        "import importlib\nimportlib.import_module('pickle')",
        "eval('1')",
        "exec(text)",
        "compile(text, 'x', 'exec')",
        "f = eval",
        "map(exec, lines)",
        "import builtins\nbuiltins.eval('1')",
        "__import__('os')",
        "import os\nos.system('ls')",
        "import os as o\no.system('ls')",
        "from os import system",
        "from os import system as s\ns('ls')",
        "import os\ngetattr(os, 'system')('ls')",
        "import os\nos.popen('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.Popen('ls', shell=flag)",
        "from subprocess import run\nrun('ls', shell=1)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import asyncio\nasyncio.create_subprocess_shell('ls')",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "from torch.serialization import load as l\nl(path)",
        "import torch\ngetattr(torch, 'load')(path)",
        "import torch\ntorch.hub.load('a', 'b')",
        "import torch\ntorch.jit.load(path)",
        "import torch\ntorch.serialization.add_safe_globals([X])",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.unsafe_load(text)",
    ],
)
def test_a_planted_call_is_found(source: str) -> None:
    assert unsafe_calls(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "import torch\ntorch.compile(model)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import subprocess\nsubprocess.run(['ls'])",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import json\njson.load(handle)",
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import pickletools",
        "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
        "from pickle import UnpicklingError",
        "import ast\nast.literal_eval(text)",
        "from .pickle_values import ALLOWED",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "text = 'eval(1)'",
    ],
)
def test_what_only_looks_like_it_is_left_alone(source: str) -> None:
    assert unsafe_calls(source) == []
