"""Batch normalization over all processes of a group."""

from __future__ import annotations

import weakref
from collections.abc import Container
from typing import Any, ClassVar, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.core.activations import ActLike
from normkit.errors import TypeMismatchError, message
from normkit.handle import Skipped, warn_skipped
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call, Normalized, changed
from normkit.nn import averages
from normkit.nn.affine import why_not_movable
from normkit.nn.arguments import Check
from normkit.nn.batchstatistics import BatchStatistics, LayerTensors
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.freezing import FrozenMixin, freeze_layer
from normkit.nn.inputs import check_batch_axis
from normkit.nn.layer import step
from normkit.nn.maskedbatchnorm import MaskedBatch
from normkit.nn.stats_spec import has_own_forward

__all__ = ["SyncBatchNorm"]

# How nn.Module's attributes end that hold hooks of calls and gradients.
HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_full_backward_hook")


def _process_group(layer: str, name: str, group: Any) -> Any:
    if group is None or (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        return group
    # What new_group returns to a process outside the group.
    if type(group) is int and dist.is_available() and group == dist.GroupMember.NON_GROUP_MEMBER:
        return group
    raise TypeMismatchError(
        message(
            f"{name} of {layer} as a process group, or None for all processes",
            f"{name}={group!r}",
            "pass torch.distributed.new_group(ranks); device and dtype follow after it",
        )
    )


class SyncBatchNorm(BatchStatistics):
    r"""Batch normalization whose moments span the processes of a group, on CPU and GPU.

    Like ``torch.nn.SyncBatchNorm``, and it also trains on a CPU over gloo. The processes exchange
    count, mean and squared deviations and merge them exactly, so their batches may differ in size
    or be empty; all end with the same bits. In evaluation, or with a single process, it
    is plain batch normalization.

    It is not a subclass of ``torch.nn.SyncBatchNorm`` but of its base:
    ``DistributedDataParallel`` refuses every instance of that class on a CPU.

    Args:
        process_group: the processes that share moments; None for all.
        The others as :class:`normkit.BatchNorm2d`.

    Shape:
        input, residual and output: (N, C, \*); N may be 0 and differ between processes.

    Raises:
        ShapeError: fewer than two axes, another number of channels, or a single value per
            channel over all processes.
        StatisticsError: on ``create_graph=True`` across processes.

    Source: Peng et al. 2018 (MegDet), arXiv 1711.07240; merging as Chan, Golub & LeVeque 1979.

    >>> import torch
    >>> SyncBatchNorm(4)(torch.randn(6, 4, 3)).shape    # one process: plain batch normalization
    torch.Size([6, 4, 3])
    """

    _kernel_signature = fused.signature("batch", range(2, 33))
    _pools_whole_batch = False
    _checked: ClassVar[dict[str, Check]] = {
        **BatchStatistics._checked,
        "process_group": _process_group,
    }

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
        average: averages.Average = "exponential",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, act=act, average=average,
        )  # fmt: skip
        self.process_group = process_group

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_batch_axis(self, input)

    def _group(self) -> Any:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    def _equal_parts(self, input: Any) -> int:
        return 1 if self._group() is None else 0

    @step
    def _forward_batch_stats(self, call: Call, tensors: LayerTensors) -> Normalized:
        group = self._group()
        if group is None:
            return super()._forward_batch_stats(call, tensors)
        return self._normalize(changed(call, stats=BatchStats(), group=group))

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Replace every batch normalization in ``module``, ours and ``torch.nn``'s, by this one.

        All but those with statistics for each domain, which it cannot keep; and layers that
        normalize by parts of the batch or correct it, subclasses with their own ``forward``, lazy
        layers without an input so far, layers whose γ or β are sharded or computed from other
        parameters, and those with a module or tensor named as an attribute of this class: a
        warning names those.

        Parameters, buffers and hooks are shared, ``state_dict`` keys stay, a layer used in several
        places stays one layer, a frozen one stays frozen. Returns ``module``, or the new
        layer where ``module`` itself is one.

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> SyncBatchNorm.convert_sync_batchnorm(model)[1].num_features
        3
        """
        skipped = {
            id(m): Skipped(name, type(m), why)
            for name, m in module.named_modules()
            if cls._is_convertible(m) and (why := _why_skipped(m)) is not None
        }
        warn_skipped("convert_sync_batchnorm", list(skipped.values()))
        return cls._convert(module, process_group, {}, skipped)

    @classmethod
    def _is_convertible(cls, module: nn.Module) -> bool:
        return isinstance(module, _BatchNorm) and not isinstance(module, (cls, Domains))

    @classmethod
    def _convert(
        cls,
        module: nn.Module,
        group: Any,
        done: dict[int, nn.Module],
        skipped: Container[int],
    ) -> nn.Module:
        if id(module) in done:
            return done[id(module)]
        result = module
        if cls._is_convertible(module) and id(module) not in skipped:
            module = cast(_BatchNorm, module)
            result = cls(
                module.num_features, affine=module.affine,
                track_running_stats=module.track_running_stats, process_group=group, device="meta",
                bias=module.bias is not None,
            )  # fmt: skip
            # As they are, past the constructor: update_bn may have set momentum to None meanwhile.
            as_is = {"eps": module.eps, "momentum": module.momentum}
            # Under the same names a layer of torch.nn may hold anything, which it does not apply.
            if isinstance(module, BatchStatistics):
                as_is |= {key: getattr(module, key) for key in ("_act", "_act_option", "_average")}
            vars(result).update(as_is)
            # All of them: hooks and other code may use further ones.
            for table in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                vars(result)[table] = vars(module)[table].copy()
            result.training = module.training
            if isinstance(module, FrozenMixin):
                freeze_layer(result, module._requested_mode)
            # Shared, so that their handles remove them from both.
            vars(result).update({k: v for k, v in vars(module).items() if k.endswith(HOOKS)})
            _hand_over(module, result)
            if hasattr(module, "qconfig"):
                result.qconfig = cast(Any, module).qconfig
        done[id(module)] = result
        # Not named_children(), which names a child that stands in two places only once.
        for name, child in module._modules.items():
            if child is not None:
                result.add_module(name, cls._convert(child, group, done, skipped))
        return result


def _hand_over(layer: nn.Module, result: nn.Module) -> None:
    """Let hooks that hold ``layer`` by a weak reference get ``result``, as long as it lives."""
    new = weakref.ref(result)
    for hook in layer._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            old = cast(Any, hook).module
            cast(Any, hook).module = lambda old=old: new() or old()


def _why_skipped(layer: nn.Module) -> str | None:
    if isinstance(layer, LazyModuleMixin):
        return "lazy and not yet initialized"
    if isinstance(layer, BatchStatistics) and not layer._pools_whole_batch:
        return "normalizes with other moments than the whole batch's"
    if isinstance(layer, MaskedBatch):
        return "normalizes by the positions of a mask"
    if has_own_forward(layer):
        return "a subclass with its own forward"
    tensors = {name for t in (layer._parameters, layer._buffers) for name in t} - {"running_var"}
    conflicts = sorted(n for n in {*layer._modules, *tensors} if hasattr(SyncBatchNorm, n))
    return f"has its own {', '.join(conflicts)}" if conflicts else why_not_movable(layer)
