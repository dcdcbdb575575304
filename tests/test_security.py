"""What SECURITY.md promises of the code as a whole: it runs nothing that a file holds, and talks to nobody.

Promises about single readers are tested beside them. Modules that could break a promise are listed with the files
that import them and why; a new one has to be added here by hand.
"""

import ast
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "ahernet").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
# Modules that can run what they are given or open a connection, and who may import them for what.
ALLOWED = {
    "pickle": {"ahernet/data/array_files.py", "ahernet/data/zip_guard.py"},  # its error
    "subprocess": {"ahernet/experiments/table.py"},  # git describe
    "importlib": {
        "ahernet/extraction/backbones.py",
        "ahernet/experiments/embedding.py",
        "ahernet/experiments/figures.py",
    },
    "torch.distributed": {"ahernet/training/ranks.py"},  # the processes of one training
    "ray": {"ahernet/ray_tasks.py"},  # a cluster, where one asks for it
}
FORBIDDEN = {
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "cloudpickle",
    "pty",
    "code",
    "runpy",
    "ctypes",
    "builtins",
    "torch.hub",
}
NETWORK = {"socket", "ssl", "http", "urllib", "urllib3", "ftplib", "smtplib", "asyncio", "xmlrpc", "socketserver"}
NETWORK |= {"requests", "httpx", "aiohttp", "huggingface_hub", "gdown"}
HARMLESS = {"urllib.parse", "importlib.metadata", "importlib.util", "importlib.resources"}
# Calls that run what they are given.
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"}
RUNNING |= {"pickle.Unpickler", "torch.jit.load", "subprocess.getoutput", "subprocess.getstatusoutput"}


def problems(source, file=""):
    """Say what in a source text breaks a promise."""
    nodes = list(ast.walk(ast.parse(source)))
    found = [f"imports {module}" for module in _imports(nodes) - HARMLESS if not _may_import(module, file)]
    for node in nodes:
        if isinstance(node, ast.Call):
            found += _of_call(ast.unparse(node.func), node)
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "pickle"):
            found += [
                f"imports {a.name} of {node.module}" for a in node.names if a.name in ("load", "loads", "jit", "hub")
            ]
    return found


def _imports(nodes):
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    parts = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    return plain | {node.module for node in parts} | {f"{n.module}.{a.name}" for n in parts for a in n.names}


def _may_import(module, file):
    names = [".".join(module.split(".")[: k + 1]) for k in range(module.count(".") + 1)]
    if HARMLESS & set(names):
        return True
    return not any(name in FORBIDDEN | NETWORK or file not in ALLOWED.get(name, {file}) for name in names)


def _of_call(name, node):
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in RUNNING:
        yield f"calls {name}"
    if keywords.get("shell", "False") != "False" or (name.startswith("subprocess.") and None in keywords):
        yield f"{name} with a shell, perhaps"
    if name.startswith("subprocess.") and "sh" in ast.unparse(node).split("'"):
        yield f"{name} of a shell"
    if keywords.get("allow_pickle", "False") != "False":
        yield f"{name} of pickled arrays"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load of anything"
    if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
        yield f"{name} of anything"


def requirements():
    """What setup.py asks for to run with, by name."""
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    lists = {node.targets[0].id: node.value.elts for node in setup.body if isinstance(node, ast.Assign)}
    runtime = ("CORE", "CPU", "VIDEO", "PARQUET", "RAY", "FIGURES")
    found = [Requirement(item.value) for name in runtime for item in lists[name] if isinstance(item, ast.Constant)]
    return {requirement.name: requirement.specifier for requirement in found}


def table_of(heading, end):
    """The rows of the table below a heading of SECURITY.md, as lists of cells."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    lines = text[text.index(heading) : text.index(end)].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]


def overlap(one, other):
    """Whether a version fulfils two specifiers: if any does, a bound of one of them does."""
    bounds = [Version(specifier.version) for specifier in (*one, *other)]
    return any(one.contains(version) and other.contains(version) for version in bounds)


def test_every_library_that_ahernet_runs_with_is_in_the_table_of_dependencies():
    rows = table_of("## Dependencies", "### Known advisories")
    assert {name.strip() for row in rows for name in row[0].split(",")} == requirements().keys()


def test_the_ranges_exclude_the_versions_with_known_holes_that_security_md_says_they_do():
    allowed, rows = requirements(), table_of("### Known advisories", "## What is not promised")
    assert len(rows) > 10
    for advisory, package, affected, done in rows:
        word = "admitted," if overlap(allowed[package], SpecifierSet(affected)) else "excluded"
        assert done.split()[0] == word, advisory


def test_there_is_code_to_look_at():
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_runs_nothing_that_it_reads_and_opens_no_connection(path):
    assert problems(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import load",
        "import pickle",
        "import pickle as p",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load",
        "import torch\ntorch.jit.load(path)",
        "import torch.hub",
        "from torch import hub",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import builtins\nbuiltins.eval(text)",
        "exec(text)",
        "import os\nos.system(text)",
        "import subprocess",
        "import requests",
        "import urllib.request",
        "from urllib import request",
        "import asyncio",
        "from torch.distributed import TCPStore",
        "import torch.distributed as dist",
    ],
)
def test_code_that_would_break_a_promise_is_found(source):
    assert problems(source)


@pytest.mark.parametrize(
    "call",
    ["run(['sh', '-c', text])", "run(text, shell=True)", "run(text, **settings)", "getoutput(text)"],
)
def test_a_shell_is_found_even_where_programs_may_be_run(call):
    assert problems(f"import subprocess\nsubprocess.{call}", file="ahernet/experiments/table.py")
