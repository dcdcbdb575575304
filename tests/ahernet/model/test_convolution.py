import pytest
import torch
from torch import nn

from ahernet.model.convolution import Convolution, rectified


def _is_channels_last(x):
    return x.transpose(1, 2).is_contiguous()


@pytest.fixture(params=[1, 2])
def pair(request):
    """The convolution, and torch's own with the same parameters."""
    torch.manual_seed(0)
    ours, theirs = Convolution(6, 5, stride=request.param), nn.Conv1d(6, 5, 3, stride=request.param, padding=1)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("steps", [1, 2, 7, 16])
def test_it_is_the_convolution_of_torch_with_its_gradients(pair, steps):
    ours, theirs = pair
    inputs = [torch.randn(3, steps, 6, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    results = [module(x.transpose(1, 2)) for module, x in zip(pair, inputs, strict=True)]
    torch.testing.assert_close(*results)
    for result in results:
        result.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_in_bfloat16_no_gradient_is_left_undefined(pair, steps):
    """PyTorch's own is, of weights that see padding alone; which memory it shows depends on what was there before."""
    ours, theirs = pair
    x = torch.randn(3, 6, steps, generator=torch.Generator().manual_seed(1)).bfloat16()
    theirs(x.float()).square().sum().backward()
    for _ in range(50):
        junk = [torch.full((size,), torch.nan, dtype=dtype) for size in (90, 120, 180) for dtype in (x.dtype, None)]
        del junk
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = ours(x)
        result.float().square().sum().backward()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0.05, atol=0.1)


def test_input_output_weight_and_gradient_have_their_channels_last(pair):
    ours, _ = pair
    result = rectified(ours, torch.randn(3, 8, 6).transpose(1, 2))
    result.sum().backward()
    for x in (result, ours.weight, ours.weight.grad):
        assert _is_channels_last(x)
    assert (result >= 0).all()


def test_weights_that_are_loaded_or_moved_keep_their_channels_last(pair):
    ours, theirs = pair
    ours.load_state_dict(
        {name: x.clone(memory_format=torch.contiguous_format) for name, x in theirs.state_dict().items()}
    )
    assert _is_channels_last(ours.weight)
    assert _is_channels_last(ours.to(torch.bfloat16).weight)
