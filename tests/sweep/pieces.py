"""Vocabulary of the sweep's programs: foreign layers, structures, changes, and data.

A printed program begins with ``from tests.sweep.pieces import *`` and runs as it stands.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import normkit as nk
from tests.sweep import changes, foreign, samples, structures
from tests.sweep.changes import *  # noqa: F403
from tests.sweep.foreign import *  # noqa: F403
from tests.sweep.samples import *  # noqa: F403
from tests.sweep.structures import *  # noqa: F403

__all__ = [
    "AveragedModel", "F", "copy", "nk", "nn", "parametrizations", "parametrize", "prune", "torch",
]  # fmt: skip
__all__ += changes.__all__ + foreign.__all__ + samples.__all__ + structures.__all__
