"""What the inference step launches on a GPU besides its network, traced without one."""

import pytest
import torch
import triton
from inference_references import CLASSES, MODEL
from pretended_gpu import CompileOnlyDriver
from torch import nn
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from ahernet.config import InferenceConfig
from ahernet.inference import anchors
from ahernet.inference.anchors import AnchorStep
from ahernet.inference.step import suppress
from ahernet.model.heads import class_logits
from ahernet.model.localizer import Localizer, Outputs

VIDEOS = 3
LAUNCH = "triton_kernel_wrapper_functional"
CHANGES_NO_MEMORY = {"empty", "empty_like", "view", "transpose", "permute", "unsqueeze", "squeeze", "detach", "alias"}
CHANGES_NO_MEMORY |= {"getitem"}


class AfterTheNetwork(nn.Module):
    """What a step does with the outputs of its network."""

    def __init__(self, config):
        super().__init__()
        self.step = AnchorStep(Localizer(MODEL, len(CLASSES)), config)
        self.config = config

    def forward(self, outputs):
        return suppress(*self.step.scored(outputs), self.config)


def network_outputs(dtype):
    """Outputs of the small network, channels last in memory."""
    model = Localizer(MODEL, len(CLASSES)).to(dtype)
    maps = model.backbone(torch.zeros((VIDEOS, 512, MODEL.feature_dimension), dtype=dtype))
    return Outputs(class_logits(maps, model.class_weights().detach()), *model.heads(maps))


def operations(config, dtype=torch.bfloat16):
    """Names of the operations after the network on a GPU, in order, without those that only name memory."""
    return traced(AfterTheNetwork(config), network_outputs(dtype))


def traced(module, inputs):
    """The same of any module, and of any nest of tensors that it takes."""
    tensors, structure = tree_flatten((dict(module.named_parameters()) | dict(module.named_buffers()), inputs))

    def run(*flat):
        state, own = tree_unflatten(flat, structure)
        return functional_call(module, state, (own,))

    with FakeTensorMode():
        on_gpu = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in tensors]
        graph = aot_export_joint_simple(run, on_gpu, trace_joint=False).graph
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    names = [getattr(target, "__name__", str(target)).split(".")[0] for target in called]
    return [name for name in names if name not in CHANGES_NO_MEMORY]


@pytest.fixture(autouse=True)
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", CompileOnlyDriver())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("class_aware", [True, False])
def test_decoding_and_hard_suppression_are_three_launches_and_nothing_else(dtype, class_aware):
    assert operations(InferenceConfig(class_aware=class_aware), dtype) == [LAUNCH] * 3


def test_the_product_with_the_probability_of_the_video_adds_no_launch_of_a_kernel():
    assert operations(InferenceConfig(class_score="product")).count(LAUNCH) == 3


class AfterTheMaps(nn.Module):
    """What a step does with the feature maps of its network."""

    def __init__(self, config):
        super().__init__()
        self.step = AnchorStep(Localizer(MODEL, len(CLASSES)), config)

    def forward(self, maps):
        return suppress(*self.step.scored_maps(maps), self.step.config)


def test_many_classes_are_two_launches_more_and_no_products_of_logits(monkeypatch):
    monkeypatch.setattr(anchors, "MANY_CLASSES", len(CLASSES))
    maps = Localizer(MODEL, len(CLASSES)).backbone(torch.zeros((VIDEOS, 512, MODEL.feature_dimension)))
    found = traced(AfterTheMaps(InferenceConfig(precision="float32")), maps)
    assert [name for name in found if name != "convolution"] == [LAUNCH] * 5


def test_the_network_keeps_channels_last():
    """So that no convolution transposes its input, and decoding reads the outputs where they are."""
    for per_scale in network_outputs(torch.float32):
        assert all(x.transpose(1, 2).is_contiguous() for x in per_scale)
