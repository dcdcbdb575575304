"""What only a GPU can show: CUDA graphs of every op, and that none waits for the host."""

import kernel_samples
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

SAMPLES = kernel_samples.samples()
WARM_UPS = 3

pytestmark = pytest.mark.gpu


@pytest.fixture(params=SAMPLES)
def on_gpu(request):
    """An op and its arguments on the GPU, compiled already."""
    sample = SAMPLES[request.param]
    arguments = tree_map(lambda x: x.cuda() if isinstance(x, torch.Tensor) else x, sample.arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            sample.function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return sample.function, arguments


def test_a_replayed_graph_gives_the_results_of_its_new_inputs(on_gpu):
    function, arguments = on_gpu
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tree_leaves(tuple_of(function(*arguments)))
    for tensor in tree_leaves(arguments):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.copy_(tensor.flip(0).clone())
    graph.replay()
    torch.cuda.synchronize()
    for actual, expected in zip(captured, tree_leaves(tuple_of(function(*arguments))), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_nothing_waits_for_the_host(on_gpu):
    function, arguments = on_gpu
    torch.cuda.set_sync_debug_mode("error")
    try:
        function(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_runs_are_equal_bit_for_bit(on_gpu):
    function, arguments = on_gpu
    first = tree_leaves(tuple_of(function(*arguments)))
    for _ in range(20):
        for actual, expected in zip(tree_leaves(tuple_of(function(*arguments))), first, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def tuple_of(result):
    return tuple(result) if isinstance(result, tuple) else (result,)
