import hashlib
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from ahernet.errors import UserError
from ahernet.extraction.backbones import Backbone, Preprocessing
from ahernet.extraction.p3d import P3D
from ahernet.extraction.weights import RANDOM_WEIGHTS, load_network

SMALL = Backbone(
    "small", dimension=64, build=lambda: P3D("port", (1, 1, 1, 1), 2, classes=7), preprocessing=Preprocessing(32, 32)
)


def trained(classes: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return P3D("port", (1, 1, 1, 1), 2, classes=classes).state_dict()


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


WAYS = {
    "plain.pt": lambda state, path: torch.save(state, path),
    "old.pth.tar": lambda state, path: torch.save(
        {"epoch": 3, "arch": "P3D", "state_dict": without_counters(state)}, path, _use_new_zipfile_serialization=False
    ),
    "parallel.pth": lambda state, path: torch.save({f"module.{name}": t for name, t in state.items()}, path),
    "weights.safetensors": lambda state, path: safetensors.torch.save_file(state, path),
}


@pytest.mark.parametrize("name", WAYS)
def test_published_forms_of_weights_load_by_name(name, tmp_path):
    state = trained()
    path = tmp_path / name
    WAYS[name](state, path)
    network, origin = load_network(SMALL, path)
    assert not network.training
    assert origin == f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    for tensor_name, tensor in network.state_dict().items():
        if not tensor_name.startswith("fc."):
            assert torch.equal(tensor, state[tensor_name])


@pytest.mark.parametrize("head", ["of another size", "left out"])
def test_the_classifier_does_not_matter(head, tmp_path):
    state = trained(classes=600)
    if head == "left out":
        del state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "w.pt")
    network, _ = load_network(SMALL, tmp_path / "w.pt")
    assert torch.equal(network.state_dict()["layer4.0.conv4.weight"], state["layer4.0.conv4.weight"])


def test_without_a_file_weights_are_always_the_same_and_say_what_they_are_for():
    before = torch.random.get_rng_state()
    first, origin = load_network(SMALL, None)
    torch.rand(3)
    second, _ = load_network(SMALL, None)
    assert origin == RANDOM_WEIGHTS
    assert "for testing the pipeline only" in origin
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.random.set_rng_state(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.conv3.weight"), "1 tensors are missing, as layer2.0.conv3.weight"),
        (lambda s: s.update({"layer9.x": torch.ones(1)}), "1 tensors are not of this network, as layer9.x"),
        (
            lambda s: s.update({"bn1.weight": torch.ones(3)}),
            r"tensor bn1.weight has shape \(3,\), small expects \(2,\)",
        ),
        (lambda s: s["bn1.bias"].fill_(float("nan")), "tensor bn1.bias holds NaN"),
        (
            lambda s: s.update({"bn1.bias": torch.full((2,), 1e300, dtype=torch.float64)}),
            "tensor bn1.bias holds NaN or",
        ),
    ],
)
def test_weights_of_another_network_are_refused_by_tensor(change, message, tmp_path):
    state = trained()
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as caught:
        load_network(SMALL, tmp_path / "w.pt")
    assert str(caught.value).startswith(str(tmp_path / "w.pt"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # that these kinds are in beta
@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (lambda t: t.to_sparse(), "float32"),
        (lambda t: t.to_sparse_csr(), "float32"),
        (lambda t: t.to("meta"), "float32"),
        (lambda t: torch.nested.nested_tensor(list(t)), "float32"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "qint8"),
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
    ids=["sparse", "compressed", "without memory", "nested", "quantized", "complex", "eight bits"],
)
def test_tensors_that_are_no_plain_arrays_are_refused(odd, kind, tmp_path):
    state = trained()
    state["bn1.bias"] = odd(state["bn1.bias"].reshape(1, -1))
    torch.save(state, tmp_path / "w.pt")
    ours = rf"w\.pt: tensor bn1\.bias of torch\.{kind} is not a plain array of numbers"
    with pytest.raises(UserError, match=rf"{ours}|not a file of tensors that is safe"):  # as torch 2.15 says of nested
        load_network(SMALL, tmp_path / "w.pt")


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(zipped, tmp_path):
    torch.save(
        {"state_dict": Hostile(str(tmp_path / "ran"))}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped
    )
    reason = r"it asks for (_?io|builtins|__builtin__)\.open, which could run code"
    with pytest.raises(UserError, match=rf"not a file of tensors that is safe to read \({reason}\)"):
        load_network(SMALL, tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([1, 2], protocol=2)])
def test_files_that_hold_no_weights_are_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"w\.(pt|safetensors): (not a|expected tensors)"):
        load_network(SMALL, tmp_path / name)


def test_packed_weights_are_refused_before_they_are_unpacked(tmp_path):
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "w.pt", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"w\.pt: .*is compressed, torch\.save leaves them as they are"):
        load_network(SMALL, tmp_path / "w.pt")


def test_no_file_and_no_tensors_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"w\.pt: cannot read \(No such file"):
        load_network(SMALL, tmp_path / "w.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="expected tensors by name"):
        load_network(SMALL, tmp_path / "list.pt")


def test_a_lack_of_memory_is_not_called_a_file_of_something_else(tmp_path, monkeypatch):
    def be_short(*_, **__):
        raise MemoryError

    torch.save(trained(), tmp_path / "w.pt")
    monkeypatch.setattr(torch, "load", be_short)
    with pytest.raises(UserError, match=r"w\.pt: cannot read \(not enough memory\)"):
        load_network(SMALL, tmp_path / "w.pt")
