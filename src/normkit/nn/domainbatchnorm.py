"""Batch normalization with running statistics for each domain."""

from __future__ import annotations

import contextlib
import math
import operator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from normkit.core.activations import ActLike
from normkit.errors import OptionError, StatisticsError, message
from normkit.nn import averages
from normkit.nn.arguments import Check, at_least
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.nn.batchstatistics import BatchStatistics, LayerTensors
from normkit.nn.layer import step

__all__ = ["DomainBatchNorm1d", "DomainBatchNorm2d", "DomainBatchNorm3d", "Domains", "check_domain"]


_BANKS = ("running_mean", "running_var", "num_batches_tracked")


class Domains(BatchStatistics):
    """Shared behaviour of layers with statistics for each domain."""

    _domain: int | None = None
    _beyond = ("statistics for each domain",)
    _checked: ClassVar[dict[str, Check]] = {
        **BatchStatistics._checked,
        "domains": at_least(1, "use for example 2", meaning="their number, "),
    }

    def __init__(
        self,
        num_features: int,
        domains: int,
        share_affine: bool = True,
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
        self.domains = domains
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, act=act, average=average,
        )  # fmt: skip
        domains = self.domains
        self.share_affine = share_affine
        self._domain = 0 if domains == 1 else None
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else _rows(buffer, domains)
        for name, parameter in self._parameters.items():
            if parameter is not None and not share_affine:
                self._parameters[name] = Parameter(_rows(parameter.detach(), domains))

    @property
    def domain(self) -> int | None:
        """Domain that the next batch is of; ``normkit.use_domain`` sets it in all layers."""
        return self._domain

    @domain.setter
    def domain(self, domain: int | None) -> None:
        if domain is not None and not (type(domain) is int and 0 <= domain < self.domains):
            domain = check_domain(domain, self.domains, type(self).__name__)
        self._domain = domain

    def chosen(self) -> int:
        """Return the chosen domain.

        Raises:
            StatisticsError: no domain has been chosen.
        """
        if self._domain is None:
            raise StatisticsError(
                message(
                    f"a chosen domain of {type(self).__name__}, one of {self.domains}",
                    "a batch and no domain",
                    "with normkit.use_domain(model, k): model(batch)",
                )
            )
        return self._domain

    @step
    def _layer_tensors(self) -> LayerTensors:
        k = self.chosen()
        all_domains = tuple(super()._layer_tensors())
        shared = 2 if self.share_affine else 0  # γ and β have no rows
        rows = [None if t is None else t[k] for t in all_domains[shared:]]
        return LayerTensors(*all_domains[:shared], *rows)

    def _fused_forward(
        self,
        input: Tensor,
        residual: Tensor | None,
        parameters: dict[str, Any] | None = None,
        buffers: dict[str, Any] | None = None,
    ) -> Tensor | None:
        if (k := self._domain) is None:
            return None
        # Other buffers, such as the mask of a pruned γ, have no rows.
        banks = {name: self._buffers.get(name) for name in _BANKS}
        buffers, parameters = _row(banks, k), self._parameters
        if not self.share_affine:
            parameters = _row(parameters, k)
        return super()._fused_forward(input, residual, parameters, buffers)

    def reset_running_stats(self) -> None:
        """Reset the statistics of the chosen domain, or of all domains while none is chosen.

        So ``torch.optim.swa_utils.update_bn`` within ``normkit.use_domain(model, k)`` measures
        those of one domain and leaves the others.
        """
        if self._domain is None:
            super().reset_running_stats()
            return
        for name, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            buffer = getattr(self, name)
            if buffer is not None:
                buffer[self._domain].fill_(value)

    def reset_parameters(self) -> None:
        """Reset γ to 1, β to 0 and the statistics of all domains."""
        domain, self._domain = self._domain, None
        super().reset_parameters()
        self._domain = domain

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The checkpoint of a layer without domains: each starts with its tensors.
        for name, tensor in {**self._parameters, **self._buffers}.items():
            value = state_dict.get(prefix + name)
            if tensor is None or not isinstance(value, Tensor):
                continue
            if value.dim() == tensor.dim() - 1:
                state_dict[prefix + name] = _rows(value, self.domains)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        shown = f"{super().extra_repr()}, domains={self.domains}"
        return shown if self.share_affine else f"{shown}, share_affine=False"


class DomainBatchNorm1d(Domains, BatchNorm1d, nn.BatchNorm1d):
    """:class:`DomainBatchNorm2d` for (N, C) and (N, C, L).

    >>> import torch
    >>> layer = DomainBatchNorm1d(3, domains=2)
    >>> layer.domain = 1
    >>> layer(torch.randn(10, 3)).shape, layer.num_batches_tracked
    (torch.Size([10, 3]), tensor([0, 1]))
    """


class DomainBatchNorm2d(Domains, BatchNorm2d, nn.BatchNorm2d):
    r"""Batch normalization with a bank of remembered moments for each domain.

    .. math::
        y = \mathrm{act}\left(\gamma_{(k)}\,\frac{x - \mu_k}{\sqrt{\sigma_k^2 + \epsilon}}
            + \beta_{(k)} + \mathrm{residual}\right)

    for a batch of domain :math:`k`, chosen with ``normkit.use_domain(model, k)`` for all such
    layers of a model at once. Training normalizes with the moments of the batch and remembers
    them for its domain; evaluation normalizes with what was remembered of it. No other bank
    moves. A layer with a single domain needs no choice.

    A checkpoint of :class:`torch.nn.BatchNorm2d` loads: every domain starts with its statistics,
    and with its γ and β.

    Args:
        num_features: number of channels C.
        domains: number of domains D.
        share_affine: one γ and one β for all domains, or one for each. Those of another domain
            then get gradients of zero; weight decay and an optimizer's momentum still move them.
        The others as :class:`normkit.BatchNorm2d`.

    Shape:
        input, residual and output: (N, C, H, W), all samples of one domain.
        ``running_mean`` and ``running_var``: (D, C); ``num_batches_tracked``: (D,);
        ``weight`` and ``bias``: (C,) if shared, else (D, C).

    Raises:
        StatisticsError: no domain is chosen.
        OptionError: ``domains`` is not a positive integer, or a domain that there is not.
        ShapeError: as BatchNorm2d.

    Note:
        ``torch.compile`` makes a graph for each domain, up to its own limit of graphs
        (``torch._dynamo.config.recompile_limit``).

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 5; Chang et al. 2019, arXiv 1906.03950.

    >>> import torch
    >>> layer = DomainBatchNorm2d(8, domains=2)
    >>> layer.domain = 0
    >>> _ = layer(torch.randn(4, 8, 5, 5) + 3)
    >>> layer.running_mean.mean(1).round(decimals=1)
    tensor([0.3000, 0.0000])
    """


class DomainBatchNorm3d(Domains, BatchNorm3d, nn.BatchNorm3d):
    """:class:`DomainBatchNorm2d` for (N, C, D, H, W).

    >>> import torch
    >>> DomainBatchNorm3d(3, domains=1)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """


def check_domain(domain: object, domains: int, where: str) -> int:
    """Return ``domain``, an integer of any library, as one of Python's.

    Args:
        domain: the value to check.
        domains: the number of domains of the layer.
        where: the layer, for the message.

    Raises:
        OptionError: it is no such integer, or the layer has no such domain.
    """
    shape = tuple(getattr(domain, "shape", ()))  # of a tensor or an array
    several = math.prod(shape) != 1
    truth = isinstance(domain, bool) or (isinstance(domain, Tensor) and domain.dtype == torch.bool)
    if not (several or truth):
        with contextlib.suppress(TypeError, RuntimeError):  # no integer; no value
            index = operator.index(domain)  # type: ignore[arg-type]
            if 0 <= index < domains:
                return index
    received = f"values of shape {shape}" if several else repr(domain)
    fix = "choose one of them, or construct the layers with more domains"
    if several:
        fix = (
            "choose one for the whole batch: call the model once for each domain, with the samples "
            "of that domain"
        )
    raise OptionError(
        message(f"a domain of {where} as an integer from 0 to {domains - 1}", received, fix)
    )


def _rows(t: Tensor, rows: int) -> Tensor:
    return t.expand(rows, *t.shape).clone()


def _row(tensors: dict[str, Any], k: int) -> dict[str, Any]:
    return {name: None if t is None else t[k] for name, t in tensors.items()}
