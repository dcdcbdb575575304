import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ahernet.checkpoint
from ahernet.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
from ahernet.config import Config, ModelConfig
from ahernet.errors import UserError
from ahernet.model.localizer import Localizer

CONFIG = Config(model=ModelConfig(feature_dimension=6, width=1 / 256, minimum_channels=2))
CLASSES = ("jump", "fall", "größer")
NOT_FINITE = "holds NaN or infinite values, expected finite ones"


def _model(seed=0):
    torch.manual_seed(seed)
    return Localizer(CONFIG.model, len(CLASSES))


def _edit(folder, **changes):
    path = folder / CHECKPOINT_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "run", CONFIG, CLASSES, _model())
    return tmp_path / "run"


def _weights_file(folder):
    (path,) = folder.glob("weights-*.safetensors")
    return path


def _replace_weights(folder, content):
    _weights_file(folder).unlink()
    digest = hashlib.sha256(content).hexdigest()
    name = f"weights-{digest[:12]}.safetensors"
    (folder / name).write_bytes(content)
    _edit(folder, weights={"file": name, "sha256": digest})


def test_what_is_saved_is_loaded(folder):
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config == CONFIG
    assert checkpoint.classes == CLASSES
    assert not checkpoint.model.training
    for (name, expected), got in zip(
        _model().state_dict().items(), checkpoint.model.state_dict().values(), strict=True
    ):
        assert torch.equal(got, expected), name


def test_the_description_says_what_made_it(folder):
    description = json.loads((folder / CHECKPOINT_NAME).read_text())
    assert description["format"] == "ahernet checkpoint"
    assert description["preset"] == "paper"
    assert set(description["versions"]) == {"ahernet", "torch", "triton", "numpy"}
    assert description["versions"]["numpy"] == np.__version__
    assert description["weights"]["sha256"].startswith(_weights_file(folder).name[8:20])


def test_a_new_checkpoint_replaces_the_old_one_and_nothing_else(folder):
    (folder / "notes.txt").write_text("keep")
    (folder / "weights-mine.safetensors").write_text("keep")
    save_checkpoint(folder, CONFIG, CLASSES, _model(seed=1))
    assert len(list(folder.glob("weights-" + "[0-9a-f]" * 12 + ".safetensors"))) == 1
    assert {path.name for path in folder.iterdir()} >= {"notes.txt", "weights-mine.safetensors"}
    weight = load_checkpoint(folder).model.backbone.stem[0].weight
    assert torch.equal(weight, _model(seed=1).backbone.stem[0].weight)


def test_saving_the_same_weights_again_keeps_them(folder):
    save_checkpoint(folder, CONFIG, CLASSES, _model())
    load_checkpoint(folder)


@pytest.mark.parametrize("step", ["weights", "json", "cleanup"])
def test_a_writer_killed_at_any_step_leaves_a_whole_checkpoint(folder, monkeypatch, step):
    class Killed(BaseException):
        pass

    def die(*_args, **_kwargs):
        raise Killed

    if step == "weights":
        monkeypatch.setattr(Path, "write_bytes", die)
    elif step == "json":
        monkeypatch.setattr(Path, "write_text", die)
    else:
        monkeypatch.setattr(Path, "unlink", lambda path, **_: die() if path.name.startswith("weights-") else None)
    with pytest.raises(Killed):
        save_checkpoint(folder, CONFIG, CLASSES, _model(seed=1))
    monkeypatch.undo()
    seed = 1 if step == "cleanup" else 0
    weight = load_checkpoint(folder).model.backbone.stem[0].weight
    assert torch.equal(weight, _model(seed=seed).backbone.stem[0].weight)
    save_checkpoint(folder, CONFIG, CLASSES, _model(seed=2))
    assert _weights_file(folder).exists()


def test_a_moved_folder_can_be_loaded(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "elsewhere").source == tmp_path / "elsewhere"


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere/checkpoint\.json: no such file, expected a folder with a"):
        load_checkpoint(tmp_path / "nowhere")
    weights = _weights_file(folder)
    weights.unlink()
    with pytest.raises(UserError, match=rf"{weights.name}: cannot read the weights that checkpoint\.json names"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated or not JSON"),
        (b'{"format": "ahernet checkpoint", "ver', "truncated or not JSON"),
        (b"\x80\x04\xff", "truncated or not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"version": ' + b"9" * 5000 + b"}", "truncated or not JSON"),
        (b'{"classes": ["run"], "classes": ["jump"]}', "the key 'classes' occurs more than once"),
        (b"[]", "not a checkpoint of ahernet"),
        (b'{"format": "other"}', 'not a checkpoint of ahernet (expected "format": "ahernet checkpoint")'),
        (b'{"format": "ahernet checkpoint"}', "version: expected a whole number above 0, got None"),
        (b'{"format": "ahernet checkpoint", "version": 2}', "written by a newer ahernet (version 2"),
        (b'{"format": "ahernet checkpoint", "version": 1}', "config: expected a JSON object"),
    ],
)
def test_damaged_and_foreign_descriptions_are_refused(folder, content, words):
    (folder / CHECKPOINT_NAME).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    assert str(caught.value).startswith(str(folder / CHECKPOINT_NAME))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_weights_are_refused(folder, damage):
    path = _weights_file(folder)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[:-10] if damage == "truncated" else content)
    with pytest.raises(UserError, match="truncated or changed"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "weights-0.safetensors", 5, None])
def test_weights_outside_the_folder_are_refused(folder, name):
    _edit(folder, weights={"file": name, "sha256": "0"})
    with pytest.raises(UserError, match=r"weights\.file: expected weights-<12 hex digits>"):
        load_checkpoint(folder)


def test_weights_that_are_no_safetensors_are_refused(folder, monkeypatch):
    monkeypatch.setattr(ahernet.checkpoint.safetensors.torch, "save", lambda _: b"something else")
    save_checkpoint(folder, CONFIG, CLASSES, _model())
    monkeypatch.undo()
    with pytest.raises(UserError, match="not a safetensors file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("classes", [[], ["a", "a", "b"], ["a", "b", 3], "abc"])
def test_bad_class_lists_are_refused(folder, classes):
    _edit(folder, classes=classes)
    with pytest.raises(UserError, match="classes: expected a"):
        load_checkpoint(folder)


def test_weights_that_do_not_fit_the_settings_are_named(folder):
    config = json.loads((folder / CHECKPOINT_NAME).read_text())["config"]
    config["model"]["feature_dimension"] = 7
    _edit(folder, config=config)
    with pytest.raises(UserError, match=r"tensor backbone\.stem\.0\.weight has shape \(8, 6, 3\).*\(8, 7, 3\)"):
        load_checkpoint(folder)
    config["model"]["feature_dimension"] = 0
    _edit(folder, config=config)
    with pytest.raises(UserError, match="cannot build the network that it describes"):
        load_checkpoint(folder)
    config["model"] |= {"feature_dimension": 6, "transfer_layers": 3}
    _edit(folder, config=config)
    with pytest.raises(UserError, match=r"tensor transfer\.\S+ is missing"):
        load_checkpoint(folder)


def test_another_number_of_classes_is_refused(folder):
    _edit(folder, classes=["a", "b"])
    with pytest.raises(UserError, match=r"tensor segment_classifier\.weights\.0 has shape \(3, "):
        load_checkpoint(folder)


def test_unknown_settings_are_refused_with_their_name(folder):
    config = json.loads((folder / CHECKPOINT_NAME).read_text())["config"]
    config["training"]["warmup"] = 3
    _edit(folder, config=config)
    with pytest.raises(UserError, match=r"checkpoint\.json: config: training\.warmup: unknown key"):
        load_checkpoint(folder)


def test_half_precision_weights_load_as_float32(folder):
    state = {name: tensor.half().contiguous() for name, tensor in _model().state_dict().items()}
    _replace_weights(folder, safetensors.torch.save(state))
    assert load_checkpoint(folder).model.backbone.stem[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.long(), "has type torch.int64, expected floating point"),
        (lambda tensor: tensor.to(torch.complex64), "has type torch.complex64, expected floating point"),
        (lambda tensor: tensor.index_fill(0, torch.tensor([1]), math.nan), NOT_FINITE),
        (lambda tensor: tensor.index_fill(0, torch.tensor([1]), -math.inf), NOT_FINITE),
        (lambda tensor: tensor.double() + 1e300, NOT_FINITE),  # beyond float32
    ],
)
def test_weights_that_cannot_be_weights_are_named(folder, change, words):
    name = "heads.overlaps.2.weight"
    state = {name: tensor.contiguous() for name, tensor in _model().state_dict().items()}
    _replace_weights(folder, safetensors.torch.save({**state, name: change(state[name]).contiguous()}))
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    assert str(caught.value) == f"{_weights_file(folder)}: tensor {name} {words}"


def test_weights_of_a_type_that_torch_does_not_have_are_refused(folder):
    header = json.dumps({"x": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
    _replace_weights(folder, len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match="not a safetensors file"):
        load_checkpoint(folder)


def test_settings_that_ask_for_a_giant_network_are_refused_without_building_it(folder, monkeypatch):
    config = json.loads((folder / CHECKPOINT_NAME).read_text())["config"]
    config["model"] |= {"width": 16, "feature_dimension": 1 << 20, "transfer_layers": 3}
    _edit(folder, config=config)
    largest = []

    def watched(*sizes, **options):
        tensor = empty(*sizes, **options)
        if tensor.device.type == "cpu":
            largest.append(tensor.numel())
        return tensor

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(UserError, match=r"tensor backbone\.stem\.0\.weight has shape .*\(32768, 1048576, 3\)"):
        load_checkpoint(folder)
    assert max(largest, default=0) < 1 << 20


def test_saving_into_a_place_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create this folder"):
        save_checkpoint(tmp_path / "file", CONFIG, CLASSES, _model())


def test_the_preset_is_recorded(tmp_path):
    save_checkpoint(tmp_path, dataclasses.replace(CONFIG, preset="tiny"), CLASSES, _model())
    assert json.loads((tmp_path / CHECKPOINT_NAME).read_text())["preset"] == "tiny"
    assert load_checkpoint(tmp_path).config.preset == "tiny"
