"""The short form of `python -m tests.kernel_campaign`, and that it finds what is planted."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import ahernet_kernels
import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

ROOT = Path(__file__).parents[1]
specification = importlib.util.spec_from_file_location("kernel_campaign", ROOT / "tests" / "kernel_campaign.py")
kernel_campaign = importlib.util.module_from_spec(specification)
specification.loader.exec_module(kernel_campaign)


@pytest.mark.parametrize("name", kernel_campaign.CHECKS)
def test_some_thousand_cases_of_an_op_are_as_its_contract_says(name, capsys):
    assert kernel_campaign.main(["--cases", "8000", "--only", name, "--seed", "1000003"]) == 0
    assert re.search(rf"^{name} +[\d,]+ cases .* 0 differ$", capsys.readouterr().out, re.MULTILINE)


def test_all_public_ops_have_a_check():
    checked = {re.sub(r"_(large|linear|gaussian)$", "", name) for name in kernel_campaign.CHECKS}
    public = {name for name in ahernet_kernels.__all__ if name.islower()}
    assert public - checked == {"resample_checked"}  # held together with resample


def with_one_wrong_number(results, number):
    """Results of an op, with 1 added to one number of one tensor of theirs."""
    leaves, structure = tree_flatten(results)
    more = torch.zeros_like(leaves[number])
    more.view(-1)[more.numel() // 2 : more.numel() // 2 + 1] = 1
    leaves[number] = leaves[number] + more
    return tree_unflatten(leaves, structure)


@pytest.mark.parametrize(
    ("op", "result"),
    [("nms", 0), ("match", 0), ("assign", 1), ("classify", 1), ("decode", 2), ("resample", 0), ("stretch", 0)],
)
def test_one_wrong_number_is_found_and_found_again_by_its_seed(op, result, monkeypatch, capsys):
    right, calls = getattr(ahernet_kernels, op), []

    def wrong_from_the_third_call_on(*arguments, **settings):
        calls.append(op)
        results = right(*arguments, **settings)
        return results if len(calls) < 3 else with_one_wrong_number(results, result)

    monkeypatch.setattr(ahernet_kernels, op, wrong_from_the_third_call_on)
    assert kernel_campaign.main(["--cases", "40000", "--only", op]) == 1
    printed = capsys.readouterr().out
    seed, size = re.search(r"again with --only \w+ --seed (\d+) --cases (\d+)", printed).groups()
    assert re.search(r"[1-9]\d* differ$", printed, re.MULTILINE)
    assert kernel_campaign.main(["--cases", size, "--only", op, "--seed", seed]) == 1
    monkeypatch.setattr(ahernet_kernels, op, right)
    assert kernel_campaign.main(["--cases", size, "--only", op, "--seed", seed]) == 0


def test_what_spreads_from_one_video_to_another_is_found(monkeypatch):
    right = ahernet_kernels.resample

    def spreading(features, *arguments):
        return right(features, *arguments) + 0 * features.sum()

    monkeypatch.setattr(ahernet_kernels, "resample", spreading)
    assert kernel_campaign.main(["--cases", "20000", "--only", "resample"]) == 1


def test_calls_are_the_same_for_the_same_seed():
    ops = kernel_campaign.registered("cpu")
    check = kernel_campaign.CHECKS["nms"]
    shown = [kernel_campaign.outcome_of(check, "nms", ops, 3, 50).show(7) for _ in range(2)]
    for left, right in zip(*(list(x.values()) for x in shown), strict=True):
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.interpret
def test_kernels_in_the_interpreter_are_held_to_the_same():
    command = [sys.executable, "-m", "tests.kernel_campaign", "--cases", "3", "--only", "match", "pick"]
    path = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 ops by interpreter, 0 not as their contracts say" in result.stdout
