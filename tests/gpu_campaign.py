"""Run every op on a GPU again and again and compare all bits: `python -m tests.gpu_campaign --repeats 1000`.

Not part of the test-suite: it needs a GPU and takes minutes. A race shows as a difference between two runs. The
arguments are those of the bench, at the sizes of the targets of the project (`--small`: small ones). Under
compute-sanitizer one repeat of the small ones is enough, with a block of its own for every tensor so that an access
beside it is seen:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \\
        python -m tests.gpu_campaign --small --repeats 1

Ends with exit code 1 if two runs differ, 2 without a GPU.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.lines import GROUPS, Sizes

SMALL = Sizes(
    batch=4,
    small_batch=2,
    classes=20,
    many=(3000,),
    stairs=1500,
    resampled_videos=4,
    mean_rows=40,
    dimension=64,
    steps=64,
    pairs=100,
    soft_candidates=(300, 1500),
    many_classes=100,
)
# Pipelines end in matrix products of libraries, which have tests of their own.
LEFT_OUT = ("localize", "training")


def repeats_that_differ(call: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> int:
    """Count the runs of a call, after the first, that do not give the same bits as the first."""
    first = [leaf for leaf in tree_leaves(call(*arguments)) if isinstance(leaf, Tensor)]
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(repeats - 1):
        again = [leaf for leaf in tree_leaves(call(*arguments)) if isinstance(leaf, Tensor)]
        same = torch.stack([_same_bits(one, other) for one, other in zip(first, again, strict=True)])
        differing += same.logical_not().any()
    return int(differing)


def _same_bits(one: Tensor, other: Tensor) -> Tensor:
    """Whether two tensors are equal, NaN equal to itself; a scalar on the device."""
    return ((one == other) | ((one != one) & (other != other))).all()


def main() -> int:
    """Repeat the calls of the command line and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_campaign", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="runs of every call (default: 1000)")
    parser.add_argument("--small", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", default=[name for name in GROUPS if name not in LEFT_OUT])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU found", file=sys.stderr)
        return 2
    calls = wrong = 0
    for group in options.only:
        for line in GROUPS[group]("cuda", SMALL if options.small else Sizes()):
            begun = time.perf_counter()
            differing = repeats_that_differ(line.call, line.arguments, options.repeats)
            calls, wrong = calls + options.repeats, wrong + (differing > 0)
            seconds = time.perf_counter() - begun
            print(f"{line.op:24}{line.case:44}{differing} of {options.repeats} differ, {seconds:.1f} s", flush=True)
    print(f"{calls} calls on {torch.cuda.get_device_name()}, {wrong} lines whose runs differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
