"""Enough of a GPU to trace what would be launched on one."""

import torch
from triton.backends.compiler import GPUTarget


class CompileOnlyDriver:
    """As much of a Triton driver as tracing needs; there is no GPU behind it."""

    @staticmethod
    def get_current_target():
        return GPUTarget("cuda", 90, 32)

    @staticmethod
    def get_current_device():
        return 0

    @staticmethod
    def get_active_torch_device():
        return torch.device("cuda", 0)
