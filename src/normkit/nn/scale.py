"""Scale and shift of each channel, which Caffe keeps in a layer after the normalization."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from normkit.core.activations import ActLike
from normkit.nn.inputs import check_channels, check_rank, prepare
from normkit.nn.layer import Layer, affine_parameters, reset_affine
from normkit.nn.symbolic import as_leaf

__all__ = ["Scale"]


class Scale(Layer):
    r"""Scale and shift each channel.

    .. math::
        y = \mathrm{act}(\gamma x + \beta + \mathrm{residual})

    Caffe keeps the learned scale apart from the normalization, BatchNorm then Scale. A batch
    normalization with ``affine=False`` followed by this layer is the same function as one with
    ``affine=True``.

    Args:
        num_features: number of channels C.
        bias: learn β too.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, \*).

    Raises:
        ShapeError: fewer than two axes, or another number of channels.
        TypeMismatchError: not a floating-point tensor.

    Source: Jia et al. 2014, *Caffe*, arXiv 1408.5093 (ScaleLayer).

    >>> import torch
    >>> Scale(2)(torch.ones(1, 2)).detach()
    tensor([[1., 1.]])
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        act: ActLike = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.act = act
        affine_parameters(self, self.num_features, True, bias, device, dtype)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Scale and shift ``input``, add ``residual`` if given, apply the activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        check_rank(self, input, (2, 3, 4, 5), "(N, C, *)", "add the batch axis")
        input, residual = prepare(self, input, residual)
        check_channels(self, input, self.weight)
        shape = [1, -1] + [1] * (input.dim() - 2)
        y = input * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        if residual is not None:
            y = y + residual
        return y if self._act is None else self._act(y)

    def _is_composed(self, input: Tensor | None = None) -> bool:
        return True

    def reset_parameters(self) -> None:
        """Reset γ to 1 and β to 0."""
        reset_affine(self)

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, bias={self.bias is not None}"
        return shown if self.act is None else f"{shown}, act={self.act!r}"
