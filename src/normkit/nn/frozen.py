"""Batch normalization with constant moments and constant γ and β."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import PER_CHANNEL
from normkit.errors import TypeMismatchError, message
from normkit.kernels import fused
from normkit.kernels.call import Call, FixedStats
from normkit.kernels.fused import Stats
from normkit.nn.arguments import check_options
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.guards import GuardedVariance
from normkit.nn.inputs import check_channels, check_eps, check_rank, prepare
from normkit.nn.layer import Layer, reset_affine
from normkit.nn.maskedbatchnorm import MaskedBatch
from normkit.nn.stats_spec import has_own_forward
from normkit.nn.symbolic import as_leaf

__all__ = ["FrozenBatchNorm1d", "FrozenBatchNorm2d", "FrozenBatchNorm3d"]

_Frozen = TypeVar("_Frozen", bound="FrozenBatchNorm")


class FrozenBatchNorm(Layer):
    """Shared behaviour of constant batch normalizations; subclasses fix the input rank."""

    _ranks: ClassVar[tuple[int, ...]]
    _shape: ClassVar[str]
    # The batch normalization whose inputs it takes.
    _plain: ClassVar[type[_BatchNorm]]
    _kernel_signature: ClassVar[int]

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var = cast(Any, GuardedVariance())

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
        *,
        act: ActLike = None,
    ) -> None:
        super().__init__()
        check_options(self, device, dtype)
        self.num_features = num_features
        self.eps = eps
        self.act = act
        ones = torch.ones(self.num_features, device=device, dtype=dtype)
        for name, values in (
            ("weight", ones),
            ("bias", torch.zeros_like(ones)),
            ("running_mean", torch.zeros_like(ones)),
            ("running_var", ones.clone()),
        ):
            self.register_buffer(name, values)

    @classmethod
    def from_batch_norm(cls: type[_Frozen], layer: _BatchNorm) -> _Frozen:
        """Return a frozen copy of a batch normalization with running statistics.

        Raises:
            TypeMismatchError: ``layer`` is something else, takes inputs of another rank, is a
                subclass with its own ``forward``, or keeps no running statistics, or those of
                several domains.
        """
        others = (*(plain for plain in _PLAIN if plain is not cls._plain), Domains, MaskedBatch)
        mean = getattr(layer, "running_mean", None)
        if not isinstance(layer, _BatchNorm) or isinstance(layer, others) or mean is None:
            raise TypeMismatchError(
                message(
                    f"a batch normalization of {cls._shape} with one set of running statistics",
                    repr(layer),
                    "construct it with track_running_stats=True and train or recalibrate it first",
                )
            )
        if has_own_forward(layer):
            raise TypeMismatchError(
                message(
                    "a batch normalization whose forward is torch.nn's or normkit's",
                    f"a {type(layer).__name__}, which may compute something else",
                    "keep its statistics with normkit.freeze(layer), or register it first with "
                    "stats_spec.register",
                )
            )
        # The moments of a half-precision model stay in float32 too. Pruning may leave
        # num_features as it was.
        frozen = cls(
            mean.numel(), layer.eps, mean.device, accumulator(mean.dtype),
            act=layer.act if isinstance(layer, Layer) else None,
        )  # fmt: skip
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(layer, name)
                if value is not None:
                    getattr(frozen, name).copy_(value)
        return frozen

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if not is_compiling():
            tensors, signature = self._buffers, self._kernel_signature
            y = fused.layer(input, residual, tensors, tensors, signature, 1, None,
                            self.eps, self._act, Stats.FIXED)  # fmt: skip
            if y is not None:
                return y
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        check_rank(self, input, self._ranks, self._shape, "add the missing axis")
        input, residual = prepare(self, input, residual)
        check_channels(self, input, self.weight)
        check_eps(self, self.eps, False)
        spec = Spec(PER_CHANNEL, self.eps, self._act)
        stats = FixedStats(self.running_mean, self.running_var)
        return self._normalize(Call(input, spec, self.weight, self.bias, residual, stats)).y

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        # The checkpoint of a layer without affine: γ and β stay as they are.
        for name in ("weight", "bias"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def reset_parameters(self) -> None:
        """Reset to the identity: γ = 1, β = 0, mean 0, variance 1."""
        reset_affine(self)
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, eps={self.eps}"
        return shown if self.act is None else f"{shown}, act={self.act!r}"


class FrozenBatchNorm1d(FrozenBatchNorm):
    """:class:`FrozenBatchNorm2d` for (N, C) and (N, C, L).

    >>> FrozenBatchNorm1d(3)(torch.zeros(10, 3)).shape
    torch.Size([10, 3])
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"
    _plain = nn.BatchNorm1d
    _kernel_signature = fused.signature("batch", _ranks)


class FrozenBatchNorm2d(FrozenBatchNorm):
    r"""Batch normalization with constant moments and constant γ and β.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}
            + \beta + \mathrm{residual}\right)

    Training and evaluation are alike, nothing is learned, and gradients pass through to the
    input. All four are buffers, so no optimizer and no ``.train()`` moves them. A checkpoint of
    :class:`torch.nn.BatchNorm2d` loads; its ``num_batches_tracked`` is not needed.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in squared units of the input.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, H, W).

    Raises:
        ShapeError: another rank or number of channels.
        TypeMismatchError: not a floating-point tensor.

    Source: He et al. 2016, arXiv 1512.03385, appendix A (fine-tuning with fixed moments).

    >>> bn = torch.nn.BatchNorm2d(3).eval()
    >>> x = torch.randn(2, 3, 4, 4)
    >>> torch.allclose(FrozenBatchNorm2d.from_batch_norm(bn).train()(x), bn(x), atol=1e-6)
    True
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"
    _plain = nn.BatchNorm2d
    _kernel_signature = fused.signature("batch", _ranks)


class FrozenBatchNorm3d(FrozenBatchNorm):
    """:class:`FrozenBatchNorm2d` for (N, C, D, H, W).

    >>> FrozenBatchNorm3d(3)(torch.zeros(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """

    _ranks = (5,)
    _shape = "(N, C, D, H, W)"
    _plain = nn.BatchNorm3d
    _kernel_signature = fused.signature("batch", _ranks)


_PLAIN = tuple(cls._plain for cls in (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d))
