import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ahernet.extraction.p3d import P3D, P3D_199, FlatBottleneck, PseudoBottleneck

VARIANTS = ["caffe", "port"]


def settled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give normalisations statistics that are not the identity, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if re.search(r"bn|downsample\.1|normal", name) and tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.3))
    return module.eval()


def convolve(x: np.ndarray, weight: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """Convolve (C, T, H, W) with zeros around it, one output value after the other."""
    kernel = weight.shape[2:]
    padded = np.pad(x, [(0, 0), *((size // 2, size // 2) for size in kernel)])
    sizes = [(length - 1) // step + 1 for length, step in zip(x.shape[1:], stride, strict=True)]
    out = np.empty((len(weight), *sizes))
    for t, h, w in np.ndindex(*sizes):
        starts = (place * step for place, step in zip((t, h, w), stride, strict=True))
        window = padded[(slice(None), *(slice(s, s + size) for s, size in zip(starts, kernel, strict=True)))]
        out[:, t, h, w] = (weight * window).sum((1, 2, 3, 4))
    return out


def naive_block(block: PseudoBottleneck, x: np.ndarray) -> np.ndarray:
    """The block as the paper and the two implementations define it, for one sample (C, T, H, W)."""
    state = {name: tensor.double().numpy() for name, tensor in block.state_dict().items()}
    stride = block.conv1.stride

    def layer(name: str, number: str, value: np.ndarray, step=(1, 1, 1)) -> np.ndarray:
        out = convolve(value, state[f"{name}.weight"], step)
        mean, var, weight, bias = (
            state[f"{number}.{what}"][:, None, None, None] for what in ("running_mean", "running_var", "weight", "bias")
        )
        return (out - mean) / np.sqrt(var + 1e-5) * weight + bias

    def relu(value: np.ndarray) -> np.ndarray:
        return np.maximum(value, 0)

    inner = relu(layer("conv1", "bn1", x, stride))
    space = relu(layer("conv2", "bn2", inner))
    match block.kind, block.variant:
        case "A", _:
            both = relu(layer("conv3", "bn3", space))
        case "B", "caffe":
            both = relu(space + layer("conv3", "bn3", inner))
        case "B", "port":
            both = space + relu(layer("conv3", "bn3", inner))
        case "C", "caffe":
            both = relu(0.5 * space + 0.5 * layer("conv3", "bn3", space))
        case "C", "port":
            both = space + relu(layer("conv3", "bn3", space))
    shortcut = x if block.downsample is None else layer("downsample.0", "downsample.1", x, stride)
    return relu(layer("conv4", "bn4", both) + shortcut)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", "ABC")
@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (4, 2)])
def test_a_block_computes_what_its_variant_defines(variant, kind, inputs, stride):
    torch.manual_seed(1)
    block = settled(PseudoBottleneck(inputs, 2, stride, kind, variant))
    x = torch.randn(2, inputs, 3, 4, 5)
    with torch.inference_mode():
        got = block(x)
    expected = np.stack([naive_block(block, sample) for sample in x.double().numpy()])
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_block_in_space_alone_is_a_plain_bottleneck():
    torch.manual_seed(2)
    block = settled(FlatBottleneck(6, 2, 2))
    x = torch.randn(2, 6, 6, 6)
    with torch.inference_mode():
        inner = F.relu(block.bn1(F.conv2d(x[:, :, ::2, ::2], block.conv1.weight)))
        inner = F.relu(block.bn_normal(F.conv2d(inner, block.conv_normal.weight, padding=1)))
        shortcut = block.downsample[1](F.conv2d(x[:, :, ::2, ::2], block.downsample[0].weight))
        expected = F.relu(block.bn4(F.conv2d(inner, block.conv4.weight)) + shortcut)
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_pool_pads_or_counts_partial_windows(variant):
    x = torch.arange(4 * 8 * 8.0).reshape(1, 1, 4, 8, 8)
    pooled = P3D(variant, (1, 1, 1, 1), width=2)._first_pool(x)
    # from pixels 2k - 1 to 2k + 1 with padding, from 2k to 2k + 2 without; always frames 2k and 2k + 1
    ends = [1, 3, 5, 7] if variant == "port" else [2, 4, 6, 7]
    assert (pooled[0, 0] == x[0, 0, 1::2][:, ends][:, :, ends]).all()


@pytest.fixture(scope="module")
def p3d_199() -> P3D:
    return P3D(classes=400)


def test_p3d_199_has_the_tensors_of_the_public_port(p3d_199):
    assert sum(parameter.numel() for parameter in p3d_199.parameters()) == 66_492_240
    state = p3d_199.state_dict()
    assert len(state) == 1214
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["conv1_custom.weight", *(f"bn1.{what}" for what in norm), "fc.weight", "fc.bias"]
    for stage, depth in enumerate(P3D_199, start=1):
        for place in range(depth):
            middle = [("conv2", "bn2"), ("conv3", "bn3")] if stage < 4 else [("conv_normal", "bn_normal")]
            pairs = [("conv1", "bn1"), *middle, ("conv4", "bn4")]
            if place == 0:
                pairs.append(("downsample.0", "downsample.1"))
            for convolution, normalisation in pairs:
                block = f"layer{stage}.{place}."
                expected += [f"{block}{convolution}.weight", *(f"{block}{normalisation}.{what}" for what in norm)]
    assert set(state) == set(expected)
    shapes = {
        "conv1_custom.weight": (64, 3, 1, 7, 7),
        "layer1.0.conv2.weight": (64, 64, 1, 3, 3),
        "layer2.7.conv3.weight": (128, 128, 3, 1, 1),
        "layer3.0.downsample.0.weight": (1024, 512, 1, 1, 1),
        "layer3.35.conv4.weight": (1024, 256, 1, 1, 1),
        "layer4.0.conv1.weight": (512, 1024, 1, 1),
        "layer4.2.conv_normal.weight": (512, 512, 3, 3),
        "fc.weight": (400, 2048),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_the_kinds_of_blocks_take_turns_over_all_stages(p3d_199):
    kinds = [block.kind for stage in (p3d_199.layer1, p3d_199.layer2, p3d_199.layer3) for block in stage]
    assert "".join(kinds) == "ABC" * 15 + "AB"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_becomes_one_row_through_the_stated_sizes(variant):
    network = P3D(variant, (1, 2, 1, 1), width=4, classes=5).eval()
    sizes = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    with torch.inference_mode():
        features = network(torch.randn(2, 3, 16, 160, 160))
        logits = network.fc(features)
    assert sizes == [(8, 40, 40), (4, 20, 20), (2, 10, 10), (5, 5)]
    assert features.shape == (2, 128)
    assert logits.shape == (2, 5)


def test_the_variants_differ_and_other_lengths_are_refused():
    torch.manual_seed(0)
    caffe = settled(P3D("caffe", (1, 1, 1, 1), width=4, classes=2))
    port = settled(P3D("port", (1, 1, 1, 1), width=4, classes=2))
    port.load_state_dict(caffe.state_dict())
    clips = torch.randn(1, 3, 16, 32, 32)
    with torch.inference_mode():
        assert (caffe(clips) - port(clips)).norm() > 0.01 * caffe(clips).norm()
        with pytest.raises(ValueError, match="expected 16 frames, got 8"):
            caffe(clips[:, :, :8])
    with pytest.raises(ValueError, match="expected 'caffe' or 'port'"):
        P3D("official")


@pytest.mark.parametrize(("variant", "peak"), [("caffe", 255.0), ("port", 4.4)])
def test_a_deep_untrained_network_gives_features_of_usual_size(variant, peak):
    torch.manual_seed(0)
    network = P3D(variant, P3D_199, width=4, classes=2).eval()
    with torch.inference_mode():
        features = network((torch.rand(1, 3, 16, 32, 32) - 0.45) * peak)
    assert 0.1 < features.std() < 100
