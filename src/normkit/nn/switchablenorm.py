"""Switchable normalization: learned shares of instance, layer and batch statistics."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from normkit.core.activations import Act, ActLike
from normkit.core.moments import accumulator
from normkit.core.pools import as_ncs, concrete
from normkit.kernels.call import Normalized
from normkit.kernels.modes import exporting, transformed
from normkit.kernels.wide import beyond_float32
from normkit.nn import averages
from normkit.nn.inputs import check_count, check_eps, check_more_than_one, check_rank, prepare
from normkit.nn.layer import affine_parameters, match_layout, reset_affine, warn_if_recorded
from normkit.nn.runningaverages import RunningAverages
from normkit.nn.symbolic import as_leaf

__all__ = ["Switchable", "SwitchableNorm1d", "SwitchableNorm2d", "SwitchableNorm3d"]

_SWITCHES = ("mean_weight", "var_weight")
_KINDS = 3  # instance, layer, batch


class Switchable(RunningAverages):
    """Shared behaviour of switchable normalization; subclasses fix the input rank."""

    mean_weight: nn.Parameter
    var_weight: nn.Parameter

    _ranks: ClassVar[tuple[int, ...]]
    _shape: ClassVar[str]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
        average: averages.Average = "exponential",
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.act = act
        self.average = average
        affine_parameters(self, self.num_features, self.affine, bias, device, dtype)
        for name in _SWITCHES:
            ones = torch.ones(_KINDS, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(ones))
        sizes, tracks = (self.num_features,), self.track_running_stats
        for name, fill in (("running_mean", torch.zeros), ("running_var", torch.ones)):
            self.register_buffer(name, fill(sizes, device=device, dtype=dtype) if tracks else None)
        counter = torch.tensor(0, dtype=torch.long, device=device) if tracks else None
        self.register_buffer("num_batches_tracked", counter)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` (same shape) if given, apply the activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        check_rank(self, input, self._ranks, self._shape, "use the form for that many axes")
        input, residual = prepare(self, input, residual)
        check_count(self, input, self.num_features)
        tensors = self._layer_tensors()
        remembered = None
        if not self.training and tensors.mean is not None and tensors.var is not None:
            remembered = tensors.mean, tensors.var
        check_eps(self, self.eps, remembered is None)
        n, _, s = as_ncs(input)
        if remembered is None:
            check_more_than_one(self, input, n * s, "channel")
        updates = self.training and self.track_running_stats and self.updates_stats()
        if updates and exporting():
            warn_if_recorded(self, n)
        y, mean, var = self._normalized(input, residual, remembered, self._act)
        if updates:
            result = Normalized(y, mean.detach(), var.detach(), n * s)
            self._update_running_stats(result, tensors)
        return y

    def _normalized(
        self,
        x: Tensor,
        residual: Tensor | None,
        remembered: tuple[Tensor, Tensor] | None,
        act: Act | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and the mean and biased variance that it took as the batch's."""
        wide = torch.promote_types(accumulator(x.dtype), self.mean_weight.dtype)
        space, per_channel = tuple(range(2, x.dim())), (-1, *(1,) * (x.dim() - 2))
        z = x.to(wide)
        # Of each sample and channel; the others are merged from these, as moments are. All means
        # are relative to this one, so that a common offset costs no digits.
        centre = _mean(z, *space)
        z = z - centre
        # What rounding left in the mean. Detached, since its derivative is zero but for rounding.
        rest = _mean(z, *space).detach()
        var = _mean((z - rest).square(), *space)
        of_layer, layer_var = _merged(centre, rest, var, 1)
        of_batch, batch_var = _merged(centre, rest, var, 0)
        batch_mean = (centre + of_batch)[:1]
        if remembered is not None:
            batch_mean, batch_var = (t.to(wide).reshape(per_channel) for t in remembered)
            of_batch = batch_mean - centre
        mean = _mixed(self.mean_weight.to(wide), rest, of_layer, of_batch)
        variance = _mixed(self.var_weight.to(wide), var, layer_var, batch_var)
        factor = torch.rsqrt(variance + self.eps)
        looks = wide == torch.float32 and x.is_cpu and not transformed(x)
        if looks and beyond_float32(factor):  # squares beyond float32, see normkit.kernels.wide
            y, batch_mean, batch_var = self._normalized(x.double(), residual, remembered, act)
            return y.to(x.dtype), batch_mean, batch_var
        if self.weight is not None:
            factor = factor * self.weight.to(wide).reshape(per_channel)
        offset = -mean * factor
        if self.bias is not None:
            offset = offset + self.bias.to(wide).reshape(per_channel)
        z = torch.addcmul(offset, z, factor)
        if residual is not None:
            z = z + residual.to(wide)
        y = match_layout((z if act is None else act(z)).to(x.dtype), x)
        return y, batch_mean.flatten(), batch_var.flatten()

    def _is_composed(self, input: Tensor | None = None) -> bool:
        return True

    def reset_running_stats(self) -> None:
        """Reset the running mean to 0, the variance to 1 and the count of batches to 0."""
        if self.running_mean is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Reset statistics, γ to 1, β to 0, and all shares to be equal."""
        self.reset_running_stats()
        reset_affine(self)
        for name in _SWITCHES:
            nn.init.ones_(getattr(self, name))

    def extra_repr(self) -> str:
        shown = (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
        if self.act is not None:
            shown = f"{shown}, act={self.act!r}"
        return shown if self.average == "exponential" else f"{shown}, average={self.average!r}"


def _mean(x: Tensor, *dims: int) -> Tensor:
    """Return the mean along ``dims``, which stay; 0 of no values."""
    if any(concrete(x.shape[dim]) == 0 for dim in dims):
        return x.sum(dims, keepdim=True)
    return x.mean(dims, keepdim=True)


def _merged(centre: Tensor, rest: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Merge moments of equally many values along ``dim``, with the mean relative to ``centre``."""
    far = centre - centre.narrow(dim, 0, min(1, concrete(centre.shape[dim]))).detach()
    mean = _mean(far + rest, dim)
    return mean - far, _mean(var, dim) + _mean((far + rest - mean).square(), dim)


def _mixed(switch: Tensor, instance: Tensor, layer: Tensor, batch: Tensor) -> Tensor:
    """Return the sum of the three, weighed by the softmax of ``switch``."""
    shares = torch.softmax(switch, 0)
    return shares[0] * instance + shares[1] * layer + shares[2] * batch


class SwitchableNorm1d(Switchable):
    """:class:`SwitchableNorm2d` for (N, C, L).

    >>> SwitchableNorm1d(3)(torch.randn(10, 3, 7)).shape
    torch.Size([10, 3, 7])
    """

    _ranks = (3,)
    _shape = "(N, C, L)"


class SwitchableNorm2d(Switchable):
    r"""Normalization by learned shares of instance, layer and batch statistics, for images.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \sum_k w_k\mu_k}{\sqrt{\sum_k w'_k\sigma_k^2
            + \epsilon}} + \beta + \mathrm{residual}\right),\quad
        w = \mathrm{softmax}(\lambda),\ w' = \mathrm{softmax}(\lambda'),\quad
        k \in \{\mathrm{IN}, \mathrm{LN}, \mathrm{BN}\}

    One mean and one variance for each sample and channel, mixed of those over its positions,
    over its sample, and over the batch, all with biased variances. λ (``mean_weight``) and λ'
    (``var_weight``), three numbers each, start equal. Evaluation takes the running averages, of
    unbiased variances, in place of the batch's; the other two stay those of the input. So it is no
    scale and shift per channel in evaluation either, and cannot be folded.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in squared units of the input.
        momentum: share of the running averages *replaced* by each batch, 0.1 where the paper's
            code keeps 0.9.
        affine: learn γ (``weight``) and, unless ``bias=False``, β (``bias``).
        track_running_stats: keep running averages; without, evaluation uses its batch.
        act, average: as in :class:`normkit.BatchNorm2d`.

    Shape:
        input, residual and output: (N, C, H, W).

    Raises:
        ShapeError: another rank or number of channels; a single value per channel in training.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act`` or ``average``; ``momentum`` outside 0 to 1; ``eps`` below 0,
            in forward.

    Note:
        It is no subclass of PyTorch's batch normalization, whose tools would put a scale and shift
        in its place; so ``torch.optim.swa_utils.update_bn`` passes it over, and
        :func:`normkit.recalibrate` does not.

    Source: Luo et al. 2019, arXiv 1806.10779, equations 2 to 5.

    >>> layer = SwitchableNorm2d(8)
    >>> layer(torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    >>> torch.softmax(layer.mean_weight, 0).detach()     # instance, layer, batch
    tensor([0.3333, 0.3333, 0.3333])
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"


class SwitchableNorm3d(Switchable):
    """:class:`SwitchableNorm2d` for (N, C, D, H, W).

    >>> SwitchableNorm3d(3)(torch.randn(2, 3, 4, 5, 5)).shape
    torch.Size([2, 3, 4, 5, 5])
    """

    _ranks = (5,)
    _shape = "(N, C, D, H, W)"
