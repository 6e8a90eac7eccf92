"""Change the normalization layers of a model in place, each by a handle; fuse; merge."""

from normkit.handle import Changed, Handle, Skipped
from normkit.surgery.accelerate import accelerate
from normkit.surgery.backend import Backend
from normkit.surgery.convert import convert
from normkit.surgery.fold import Deployment, deploy, fold, load_folded
from normkit.surgery.freeze import freeze, unfreeze
from normkit.surgery.memory import save_memory
from normkit.surgery.merge import merge
from normkit.surgery.momentum import scale_momentum
from normkit.surgery.parameter_groups import parameter_groups

__all__ = [
    "Backend",
    "Changed",
    "Deployment",
    "Handle",
    "Skipped",
    "accelerate",
    "convert",
    "deploy",
    "fold",
    "freeze",
    "load_folded",
    "merge",
    "parameter_groups",
    "save_memory",
    "scale_momentum",
    "unfreeze",
]
