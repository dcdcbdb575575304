import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_videos import TINY

from ahernet.errors import UserError
from ahernet.extraction.backbones import BACKBONES, Preprocessing, find_backbone, prepare_clips, register


def prepared(pixel: tuple[int, int, int], preprocessing: Preprocessing) -> list[float]:
    clips = torch.tensor(pixel, dtype=torch.uint8).expand(2, 3, 4, 5, 3)
    out = prepare_clips(clips, preprocessing)
    assert out.shape == (2, 3, 3, 4, 5)
    assert (out == out[:1, :, :1, :1, :1]).all()
    return out[0, :, 0, 0, 0].tolist()


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_the_original_network_takes_blue_first_from_0_to_255_without_the_mean(pixel):
    red, green, blue = pixel
    assert prepared(pixel, BACKBONES["p3d199-caffe"].preprocessing) == [blue - 104, green - 117, red - 123]


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_the_port_takes_the_statistics_of_imagenet(pixel):
    expected = [
        (value / 255 - mean) / deviation
        for value, mean, deviation in zip(pixel, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    assert prepared(pixel, BACKBONES["p3d199-port"].preprocessing) == pytest.approx(expected, abs=1e-5)


def test_frames_times_and_places_keep_their_order():
    clips = torch.arange(2 * 3 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 3, 4, 5, 3)
    plain = Preprocessing(9, 9, peak=255.0, mean=(0, 0, 0), deviation=(1, 1, 1))
    assert (prepare_clips(clips, plain) == clips.permute(0, 4, 1, 2, 3)).all()
    assert (prepare_clips(clips, replace(plain, channels="BGR")) == clips.permute(0, 4, 1, 2, 3).flip(1)).all()


def test_a_module_of_the_users_registers_in_two_lines(tmp_path, monkeypatch):
    (tmp_path / "my_backbones.py").write_text(
        "from torch import nn\n"
        "from ahernet.extraction.backbones import Backbone, Preprocessing, register\n"
        "register(Backbone('mine', dimension=3, build=nn.Identity, preprocessing=Preprocessing(8, 8)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(BACKBONES, "mine", raising=False)
    path = list(sys.path)
    assert find_backbone("my_backbones:mine").dimension == 3
    assert sys.path == path
    assert find_backbone("mine") is BACKBONES["mine"]
    with pytest.raises(UserError, match=r"no 'mime' \(did you mean mine\?\)"):
        find_backbone("my_backbones:mime")


def test_names_that_are_taken_or_unknown_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is a backbone 'p3d199-port' already"):
        register(replace(TINY, name="p3d199-port"))
    with pytest.raises(ValueError, match="without a colon"):
        register(replace(TINY, name="a:b"))
    with pytest.raises(UserError, match="expected one of p3d199-caffe, p3d199-port"):
        find_backbone("zzz")
    with pytest.raises(UserError, match="cannot import 'no_such_module'"):
        find_backbone("no_such_module:x")
    (tmp_path / "broken_module.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"cannot import 'broken_module' \(ZeroDivisionError: division by zero\)"):
        find_backbone("broken_module:x")


def test_a_square_larger_than_the_frame_is_refused():
    with pytest.raises(ValueError, match="expected 1 to resize = 100 pixels, got 112"):
        Preprocessing(100, 112)
