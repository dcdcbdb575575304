"""Temporal action localization kernels: decoding, matching, assignment, suppression and resampling.

Every op takes torch tensors and runs on the device they are on: as a Triton kernel on CUDA and ROCm devices, as a
vectorised NumPy or PyTorch form on a CPU, where `match`, `assign` and `nms` are compiled loops if numba is installed.
Nothing here knows of the model that uses it. As Triton does, an op launches on the current device: with several GPUs,
make that of the tensors current.
"""

from ahernet_kernels.assign import BACKGROUND, FOREGROUND, IGNORED, Assignment, assign
from ahernet_kernels.classification_loss import classification_loss
from ahernet_kernels.classify import classify
from ahernet_kernels.decode import decode
from ahernet_kernels.decode_classified import decode_classified
from ahernet_kernels.match import match
from ahernet_kernels.nms import nms
from ahernet_kernels.pairwise_tiou import pairwise_tiou
from ahernet_kernels.pick import pick
from ahernet_kernels.proposal_loss import ProposalLoss, proposal_loss
from ahernet_kernels.resample import resample, resample_checked
from ahernet_kernels.soft_nms import soft_nms
from ahernet_kernels.stretch import stretch

__all__ = [
    "BACKGROUND",
    "FOREGROUND",
    "IGNORED",
    "Assignment",
    "ProposalLoss",
    "assign",
    "classification_loss",
    "classify",
    "decode",
    "decode_classified",
    "match",
    "nms",
    "pairwise_tiou",
    "pick",
    "proposal_loss",
    "resample",
    "resample_checked",
    "soft_nms",
    "stretch",
]
