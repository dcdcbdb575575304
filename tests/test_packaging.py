"""What an installation gives: both packages importable from anywhere, and no package called `kernels`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, folder: Path) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("place", ["repository", "elsewhere"])
def test_both_packages_import_from(place, tmp_path):
    folder = ROOT if place == "repository" else tmp_path
    assert python("import ahernet, ahernet_kernels; print(ahernet.__version__)", folder) == "0.1.0"


def test_our_folder_called_kernels_is_no_package():
    found = python("from importlib.util import find_spec as f; s = f('kernels'); print(s.origin if s else None)", ROOT)
    assert found == "None" or "site-packages" in found


def test_another_package_called_kernels_wins_even_in_the_repository(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("whose = 'theirs'")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels; print(kernels.whose)"
    assert python(code, ROOT) == "theirs"


def test_the_kernels_do_not_know_the_model():
    assert (
        python("import sys, ahernet_kernels; print(any(m.startswith('ahernet.') for m in sys.modules))", ROOT)
        == "False"
    )


@pytest.mark.parametrize(
    "module", ["ahernet", "ahernet.cli", "ahernet.data.archive", "ahernet.evaluation.average_precision"]
)
def test_light_modules_do_not_load_torch(module):
    assert python(f"import sys, {module}; print('torch' in sys.modules)", ROOT) == "False"
