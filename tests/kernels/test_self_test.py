import ahernet_kernels
import pytest
import torch
from ahernet_kernels import self_test as module
from ahernet_kernels.self_test import main, self_test

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_every_op_of_the_package_gives_its_answers(device):
    ops = {name for name in ahernet_kernels.__all__ if name.islower()}
    assert self_test(device) == dict.fromkeys(ops, "")


def test_a_wrong_answer_and_an_error_are_told_apart_by_op(monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("no such\nlibrary")

    monkeypatch.setattr(ahernet_kernels, "pairwise_tiou", lambda a, b: torch.zeros(1, 1))
    monkeypatch.setattr(ahernet_kernels, "match", broken)
    found = self_test("cpu")
    assert found["pairwise_tiou"] == "gives [[0.0]], expected [[0.3333333432674408]]"
    assert found["match"] == "RuntimeError: no such library"
    assert sum(map(bool, found.values())) == 2
    monkeypatch.setattr(module.sys, "argv", ["self_test", "cpu"])
    assert main() == 1
    assert "match: RuntimeError" in capsys.readouterr().out
