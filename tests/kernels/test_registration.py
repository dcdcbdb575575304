"""What torch has to know of an op: schema, fakes, compilation, export; and that both devices agree on it."""

import io

import kernel_samples
import pytest
import torch
import triton
from ahernet_kernels._labelled_cells import labelled_cells
from pretended_gpu import CompileOnlyDriver
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SAMPLES = kernel_samples.samples()
OPS = {name: getattr(torch.ops.ahernet_kernels, sample.function.__name__).default for name, sample in SAMPLES.items()}

MISSING = {  # arguments that the registered ops have and the public functions do not, or not without a default
    "classification_loss": labelled_cells(SAMPLES["classification_loss"].arguments[3], list(kernel_samples.CELLS), 5),
    "nms_agnostic": (float("-inf"),),
    "soft_nms_linear": (0.0,),
}


class Call(torch.nn.Module):
    """An op as a module, for export."""

    def __init__(self, sample):
        super().__init__()
        self.sample = sample
        self.settings = [x for x in sample.arguments if not holds_tensor(x)]

    def forward(self, *tensors):
        settings, tensors = iter(self.settings), iter(tensors)
        arguments = [next(tensors) if holds_tensor(x) else next(settings) for x in self.sample.arguments]
        result = self.sample.function(*arguments)
        return tuple(result) if isinstance(result, tuple) else result


def holds_tensor(argument) -> bool:
    return any(isinstance(x, torch.Tensor) for x in tree_leaves(argument))


def assert_same(actual, expected):
    for left, right in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(left, right)


def op_arguments(name):
    """Arguments of the registered op, which has no defaults: those of the public function, completed."""
    return (*SAMPLES[name].arguments, *MISSING.get(name, ()))


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_accepts_the_op(name):
    torch.library.opcheck(OPS[name], op_arguments(name))


def test_opcheck_accepts_the_gradient_of_resample():
    features, offsets, steps, dtype = SAMPLES["resample"].arguments
    torch.library.opcheck(OPS["resample"], (features.clone().requires_grad_(), offsets, steps, dtype))
    torch.library.opcheck(
        torch.ops.ahernet_kernels.resample_backward.default, (torch.randn(2, 8, 6), offsets, len(features))
    )


def test_opcheck_accepts_the_gradient_of_stretch():
    *pieces, lengths, shown = SAMPLES["stretch"].arguments
    torch.library.opcheck(OPS["stretch"], (*(piece.clone().requires_grad_() for piece in pieces), lengths, shown))
    torch.library.opcheck(
        torch.ops.ahernet_kernels.stretch_backward.default, (torch.randn(1, 8, 6), lengths, shown, 1, 9, torch.bfloat16)
    )


def test_no_gradient_is_computed_of_a_piece_that_needs_none():
    *pieces, lengths, shown = SAMPLES["stretch"].arguments
    leaf = pieces[2].clone().requires_grad_()
    with Recorder() as recorder:
        SAMPLES["stretch"].function(*pieces[:2], leaf, lengths, shown).sum().backward()
    assert recorder.names.count("ahernet_kernels.stretch_backward.default") == 1


def proposal_loss_leaves(dtype=torch.float32):
    """Arguments of `proposal_loss` whose offsets and overlaps require gradients, and these."""
    offsets, overlaps, *constants = SAMPLES["proposal_loss"].arguments
    leaves = [[x.to(dtype, copy=True).requires_grad_() for x in per_scale] for per_scale in (offsets, overlaps)]
    return (*leaves, *constants), tree_leaves(leaves)


def test_opcheck_accepts_the_gradient_of_proposal_loss():
    arguments, leaves = proposal_loss_leaves()
    torch.library.opcheck(OPS["proposal_loss"], arguments)
    gradient, scalar = torch.randn(sum(x.numel() for x in leaves)), torch.tensor(2.0)
    backward = torch.ops.ahernet_kernels.proposal_loss_backward.default
    torch.library.opcheck(backward, (gradient, scalar, scalar, scalar, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_through_a_compiled_proposal_loss(dtype):
    function = SAMPLES["proposal_loss"].function
    gradients = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        arguments, leaves = proposal_loss_leaves(dtype)
        losses = call(*arguments)
        gradients.append(torch.autograd.grad(3 * losses.offset + losses.overlap.square(), leaves))
    assert_same(*gradients)
    assert all(x.dtype == dtype for x in gradients[0])


def test_backward_of_a_kept_proposal_loss_may_run_again_and_for_one_loss_alone():
    arguments, leaves = proposal_loss_leaves()
    losses = SAMPLES["proposal_loss"].function(*arguments)
    first = torch.autograd.grad(losses.offset, leaves, retain_graph=True)
    second = torch.autograd.grad(losses.overlap, leaves, retain_graph=True)
    both = torch.autograd.grad(2 * losses.offset - losses.overlap, leaves, retain_graph=True)
    assert_same([2 * x - y for x, y in zip(first, second, strict=True)], both)
    assert_same(torch.autograd.grad(losses.offset, leaves), first)


@pytest.mark.parametrize("name", ["classification_loss", "proposal_loss"])
def test_a_second_derivative_of_a_loss_is_refused_and_not_left_out(name):
    arguments, leaves = list(SAMPLES[name].arguments), []
    for place, argument in enumerate(arguments):
        if all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in tree_leaves(argument)):
            arguments[place] = tree_map(lambda x: x.clone().requires_grad_(), argument)
            leaves += tree_leaves(arguments[place])
    for result in tree_leaves(SAMPLES[name].function(*arguments)):
        gradients = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
        with pytest.raises(RuntimeError, match="no autograd formula was registered"):
            sum(x.square().sum() for x in gradients if x is not None).backward()


def test_opcheck_accepts_the_gradients_of_classification_loss():
    *per_scale, labels, order, ends = op_arguments("classification_loss")
    leaves = [[x.clone().requires_grad_() for x in tensors] for tensors in per_scale]
    torch.library.opcheck(OPS["classification_loss"], (*leaves, labels, order, ends))
    _, log_sum = OPS["classification_loss"](*per_scale, labels, order, ends)
    torch.library.opcheck(
        torch.ops.ahernet_kernels.classification_loss_backward.default,
        (torch.tensor(0.5), *per_scale, labels, order, ends, log_sum),
    )


def test_opcheck_accepts_the_order_of_labelled_cells():
    labels = SAMPLES["classification_loss"].arguments[3]
    torch.library.opcheck(torch.ops.ahernet_kernels.labelled_cells.default, (labels, list(kernel_samples.CELLS), 5))


def test_gradients_flow_through_a_compiled_classification_loss():
    *per_scale, labels = SAMPLES["classification_loss"].arguments
    gradients = []
    for function in (
        SAMPLES["classification_loss"].function,
        torch.compile(SAMPLES["classification_loss"].function, fullgraph=True, backend="aot_eager"),
    ):
        leaves = [[x.clone().requires_grad_() for x in tensors] for tensors in per_scale]
        function(*leaves, labels).backward()
        gradients.append([x.grad for tensors in leaves for x in tensors])
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient and is not a double")
def test_resample_passes_gradcheck_to_the_precision_of_fp32():
    features, offsets, steps, _ = SAMPLES["resample"].arguments
    features = features.clone().requires_grad_()
    torch.autograd.gradcheck(  # numerical differences in fp32: a linear op allows a large step
        lambda x: SAMPLES["resample"].function(x, offsets, steps), features, eps=1e-2, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_it_compiles_without_a_graph_break(name):
    sample = SAMPLES[name]
    compiled = torch.compile(sample.function, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*sample.arguments), sample.function(*sample.arguments))


def test_gradients_flow_through_a_compiled_resample():
    features, offsets, steps, _ = SAMPLES["resample"].arguments
    gradients = []
    for function in (
        SAMPLES["resample"].function,
        torch.compile(SAMPLES["resample"].function, fullgraph=True, backend="aot_eager"),
    ):
        leaf = features.clone().requires_grad_()
        function(leaf, offsets, steps).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_a_new_batch_size_does_not_compile_again():
    segments, scores, labels, *settings = SAMPLES["nms"].arguments
    compiled = torch.compile(lambda *x: SAMPLES["nms"].function(*x, *settings), fullgraph=True, backend="eager")
    batch = [x.clone() for x in (segments, scores, labels)]
    for tensor in batch:
        torch._dynamo.mark_dynamic(tensor, 0)
    compiled(*batch)
    with torch.compiler.set_stance("fail_on_recompile"):
        for videos in (3, 5):
            compiled(*(x[:1].repeat_interleave(videos, dim=0) for x in batch))


@pytest.mark.parametrize("name", SAMPLES)
def test_an_exported_program_keeps_the_op_as_one_node_and_survives_saving(name):
    sample = SAMPLES[name]
    tensors = tuple(x for x in sample.arguments if holds_tensor(x))
    program = torch.export.export(Call(sample), tensors)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(OPS[name]) == 1
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    assert_same(torch.export.load(buffer).module()(*tensors), sample.function(*sample.arguments))


@pytest.fixture
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", CompileOnlyDriver())


def on_fake(device, arguments):
    """Fake tensors of the same shapes and types on `device`."""
    return tree_map(
        lambda x: (
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) if isinstance(x, torch.Tensor) else x
        ),
        arguments,
    )


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_cpu_and_a_gpu_return_the_same_shapes_types_and_strides(name, dtype):
    arguments = tree_map(
        lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, op_arguments(name)
    )
    with FakeTensorMode():
        results = [OPS[name](*on_fake(device, arguments)) for device in ("cpu", "cuda")]
    described = [[(x.shape, x.dtype, x.stride()) for x in tree_leaves(result)] for result in results]
    assert described[0] == described[1]


LAUNCHES = {"assign": 1, "assign_forced": 1, "classification_loss": 2, "classify": 2, "decode": 1,
            "decode_classified": 1, "match": 1, "nms": 1, "nms_agnostic": 1, "nms_large": 9, "pairwise_tiou": 1,
            "pick": 1, "proposal_loss": 2, "resample": 1, "resample_checked": 1, "soft_nms": 1,
            "soft_nms_linear": 1, "stretch": 1}  # fmt: skip


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("name", SAMPLES)
def test_on_a_gpu_an_op_is_its_kernels_and_nothing_waits_for_the_host(name):
    with FakeTensorMode():
        arguments = on_fake("cuda", op_arguments(name))
        tensors = [x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)]

        def call(*leaves):
            leaves = iter(leaves)
            return tree_leaves(
                OPS[name](*tree_map(lambda x: next(leaves) if isinstance(x, torch.Tensor) else x, arguments))
            )

        graph = aot_export_joint_simple(call, tensors, trace_joint=False).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert sum("triton_kernel_wrapper" in target for target in called) == LAUNCHES[name]
    assert not [target for target in called if "aten.item" in target or "local_scalar" in target or "nonzero" in target]


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradients_of_classification_loss_are_two_launches(dtype):
    *per_scale, labels, order, ends = op_arguments("classification_loss")
    leaves = (*[x.to(dtype) for x in tree_leaves(per_scale)], labels, order, ends)
    scales = len(kernel_samples.CELLS)

    def gradients(*tensors):
        kinds = [list(tensors[first : first + scales]) for first in range(0, 3 * scales, scales)]
        *others, gradient, log_sum = tensors[3 * scales :]
        return torch.ops.ahernet_kernels.classification_loss_backward(gradient, *kinds, *others, log_sum)

    with FakeTensorMode():
        fakes = on_fake("cuda", (*leaves, torch.tensor(1.0), torch.zeros(labels.numel())))
        graph = aot_export_joint_simple(gradients, fakes, trace_joint=False).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert sum("triton_kernel_wrapper" in target for target in called) == 2


def assert_only_launches(count, function, *arguments):
    """Traced on a GPU that is not there, a function of tensors is so many kernels and nothing else that takes time."""
    with FakeTensorMode():
        graph = aot_export_joint_simple(function, on_fake("cuda", arguments), trace_joint=False).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    others = [target for target in called if "triton_kernel_wrapper" not in target]
    assert len(called) - len(others) == count
    assert {target.split(".")[-2] if "." in target else target for target in others} <= {
        "detach", "empty", "empty_like", "<built-in function getitem>"
    }  # fmt: skip


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["assign", "assign_forced"])
def test_targets_and_proposal_losses_of_a_training_step_are_three_launches(name, dtype):
    _, leaves = proposal_loss_leaves(dtype)
    scales = len(leaves) // 2

    def step(*tensors):
        offsets, overlaps = list(tensors[:scales]), list(tensors[scales : 2 * scales])
        anchors, *truths = tensors[2 * scales :]
        kind, _, targets, tiou = SAMPLES[name].function(anchors, *truths, *SAMPLES[name].arguments[4:])
        return SAMPLES["proposal_loss"].function(offsets, overlaps, anchors, kind, targets, tiou)

    assert_only_launches(3, step, *leaves, *SAMPLES[name].arguments[:4])


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_proposal_loss_is_one_launch(dtype):
    backward = torch.ops.ahernet_kernels.proposal_loss_backward
    assert_only_launches(1, lambda *x: [backward(*x, dtype)], torch.randn(99), *torch.ones(3).unbind())


class Recorder(TorchDispatchMode):
    """Names of the ops that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def test_backward_of_proposal_loss_is_its_op_and_views_of_what_it_returns():
    arguments, leaves = proposal_loss_leaves(torch.bfloat16)
    losses = SAMPLES["proposal_loss"].function(*arguments)
    scale = torch.tensor(2.0)
    with Recorder() as recorder:
        torch.autograd.grad(losses, leaves, [scale, scale])
    first, *views = [name for name in recorder.names if "detach" not in name]
    assert first == "ahernet_kernels.proposal_loss_backward.default"
    assert set(views) == {"aten.split_with_sizes.default", "aten.view.default"}
