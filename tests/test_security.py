"""What SECURITY.md promises of the code as a whole: it runs nothing that a file holds, and talks to nobody.

Promises about single readers are tested beside them.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "ahernet").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "huggingface_hub"}
# What runs what it is given. `load` of pickle, of marshal and of joblib, a shell, and Python itself.
RUNS_CODE = {"pickle.load", "pickle.loads", "marshal.loads", "joblib.load", "os.system", "os.popen", "eval", "exec"}


def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path):
    nodes = list(ast.walk(_tree(path)))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def _calls(path):
    """Dotted name, keywords and line of every call in a file."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node.lineno


def test_there_is_code_to_look_at():
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_runs_nothing_that_it_reads_and_opens_no_connection(path):
    for module in _imports(path) - {"urllib.parse"}:  # which splits and quotes text
        assert module.split(".")[0] not in NETWORK
    for name, keywords, line in _calls(path):
        assert name not in RUNS_CODE, line
        assert keywords.get("shell", "False") == "False", line
        assert keywords.get("allow_pickle", "False") == "False", line
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", line
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False", line
