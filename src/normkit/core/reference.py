r"""Oracle: every normalizer written out in float64, straight from its paper.

Nothing here is shared with the layers. There is no view, no pool, no fused pass and no derivative
by hand: each function takes the axes its paper names, uses ``torch``'s elementary operations in
float64, and lets autograd differentiate them. It is slow and meant to be read.

All of them take the biased variance to normalize with (divisor :math:`m`, as Algorithm 1 of Ioffe
& Szegedy does) and add :math:`\epsilon` once, under the root.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "adaptive_group_norm",
    "adaptive_layer_norm",
    "batch_norm",
    "batch_renorm",
    "ema",
    "filter_response_norm",
    "frozen_batch_norm",
    "ghost_batch_norm",
    "group_norm",
    "half_instance_norm",
    "instance_norm",
    "layer_norm",
    "layer_norm_2d",
    "rms_norm",
    "standardized_weight",
    "switchable_norm",
    "zero_centered_rms_norm",
]


def _standardize(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    mean = x.mean(tuple(axes), keepdim=True)
    deviation = x - mean
    variance = (deviation * deviation).mean(tuple(axes), keepdim=True)
    return deviation / torch.sqrt(variance + eps)


def _per_channel(v: Tensor | None, x: Tensor, neutral: float) -> Tensor:
    if v is None:
        return torch.full((), neutral, dtype=torch.float64, device=x.device)
    return v.double().reshape([1, -1] + [1] * (x.dim() - 2))


def batch_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    r"""Batch normalization in training, (N, C, \*): each channel over samples and space.

    :math:`\mu_B = \frac1m\sum x_i,\ \sigma_B^2 = \frac1m\sum (x_i-\mu_B)^2,\
    y_i = \gamma\frac{x_i-\mu_B}{\sqrt{\sigma_B^2+\epsilon}}+\beta`

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167, Algorithm 1.
    """
    x = x.double()
    axes = [d for d in range(x.dim()) if d != 1]
    return _per_channel(weight, x, 1) * _standardize(x, axes, eps) + _per_channel(bias, x, 0)


def frozen_batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Batch normalization in evaluation: :math:`y=\gamma\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}}
    +\beta` with fixed per-channel moments.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167, Algorithm 2, line 11.
    """
    x = x.double()
    xhat = (x - _per_channel(mean, x, 0)) / torch.sqrt(_per_channel(var, x, 1) + eps)
    return _per_channel(weight, x, 1) * xhat + _per_channel(bias, x, 0)


def ghost_batch_norm(
    x: Tensor,
    sizes: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalization of each of the parts of ``sizes`` samples by its own moments.

    Source: Hoffer, Hubara & Soudry 2017, arXiv 1705.08741, Algorithm 1.
    """
    parts = torch.split(x.double(), list(sizes))
    return torch.cat([batch_norm(part, weight, bias, eps) for part in parts])


def batch_renorm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    r_max: float,
    d_max: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Batch renormalization in training, (N, C, \*), with the running statistics so far.

    :math:`\hat x_i = \frac{x_i-\mu_B}{\sigma_B}\cdot r+d,\
    r=\mathrm{stop\_gradient}(\mathrm{clip}_{[1/r_{max},r_{max}]}(\frac{\sigma_B}{\sigma})),\
    d=\mathrm{stop\_gradient}(\mathrm{clip}_{[-d_{max},d_{max}]}(\frac{\mu_B-\mu}{\sigma}))`

    Source: Ioffe 2017, arXiv 1702.03275, Algorithm 1.
    """
    x = x.double()
    axes = [d for d in range(x.dim()) if d != 1]
    batch_mean = x.mean(axes, keepdim=True)
    batch_sigma = torch.sqrt(((x - batch_mean) ** 2).mean(axes, keepdim=True) + eps)
    sigma = torch.sqrt(_per_channel(var, x, 1) + eps)
    r = torch.clip(batch_sigma / sigma, 1 / r_max, r_max).detach()
    d = torch.clip((batch_mean - _per_channel(mean, x, 0)) / sigma, -d_max, d_max).detach()
    xhat = (x - batch_mean) / batch_sigma * r + d
    return _per_channel(weight, x, 1) * xhat + _per_channel(bias, x, 0)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Group normalization, (N, C, \*): the channels of each group and space, within a sample.

    :math:`\mathcal S_i=\{k\mid k_N=i_N,\lfloor\frac{k_C}{C/G}\rfloor=
    \lfloor\frac{i_C}{C/G}\rfloor\}`

    Source: Wu & He 2018, arXiv 1803.08494, equation 7.
    """
    x = x.double()
    parts = [
        _standardize(part, range(1, x.dim()), eps)
        for part in torch.split(x, x.shape[1] // groups, dim=1)
    ]
    return _per_channel(weight, x, 1) * torch.cat(parts, 1) + _per_channel(bias, x, 0)


def instance_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    r"""Instance normalization, (N, C, \*): each channel of each sample over space.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv 1607.08022, equation 3.
    """
    x = x.double()
    axes = range(2, x.dim())
    return _per_channel(weight, x, 1) * _standardize(x, axes, eps) + _per_channel(bias, x, 0)


def half_instance_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Instance normalization of the first half of the channels; the rest passes unchanged.

    Source: Chen et al. 2021 (HINet), arXiv 2105.06086, section 3.2.
    """
    half = (x.shape[1] + 1) // 2
    return torch.cat([instance_norm(x[:, :half], weight, bias, eps), x[:, half:].double()], 1)


def layer_norm(
    x: Tensor,
    axes: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization over the last ``axes`` axes; γ and β have their shape.

    :math:`\mu=\frac1H\sum_i a_i,\ \sigma=\sqrt{\frac1H\sum_i(a_i-\mu)^2}`

    Source: Ba, Kiros & Hinton 2016, arXiv 1607.06450, equation 3.
    """
    x = x.double()
    y = _standardize(x, range(x.dim() - axes, x.dim()), eps)
    if weight is not None:
        y = y * weight.double()
    return y if bias is None else y + bias.double()


def layer_norm_2d(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    r"""Layer normalization of the channels at each position, (N, C, \*).

    Source: Liu et al. 2022 (ConvNeXt), arXiv 2201.03545, section 2.6.
    """
    x = x.double()
    return _per_channel(weight, x, 1) * _standardize(x, [1], eps) + _per_channel(bias, x, 0)


def rms_norm(x: Tensor, axes: int, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    r"""Root mean square normalization over the last ``axes`` axes.

    :math:`y_i=\gamma_i\,a_i/\sqrt{\frac1n\sum_j a_j^2+\epsilon}`

    Source: Zhang & Sennrich 2019, arXiv 1910.07467, equation 4.
    """
    x = x.double()
    square = (x * x).mean(tuple(range(x.dim() - axes, x.dim())), keepdim=True)
    y = x / torch.sqrt(square + eps)
    return y if weight is None else y * weight.double()


def zero_centered_rms_norm(
    x: Tensor, axes: int, weight: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    r"""Root mean square normalization with :math:`\gamma=1+w`.

    Source: Gemma Team 2024, arXiv 2403.08295; its code of ``RMSNorm``.
    """
    return rms_norm(x, axes, None if weight is None else 1 + weight.double(), eps)


def filter_response_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    tau: Tensor | None = None,
    eps: float = 1e-6,
    eps_l: Tensor | None = None,
) -> Tensor:
    r"""Filter response normalization and its threshold, (N, C, \*), also of a single position.

    :math:`\nu^2=\frac1N\sum_i x_i^2,\ y=\gamma\frac{x}{\sqrt{\nu^2+\epsilon}}+\beta,\
    z=\max(y,\tau),\ \epsilon=\epsilon_0+|\epsilon_l|`

    Source: Singh & Krishnan 2020, arXiv 1911.09737, equations 1 to 4 and section 3.3.
    """
    x = x.double()
    square = x * x
    if x.dim() > 2:
        square = square.mean(tuple(range(2, x.dim())), keepdim=True)
    total = eps + _per_channel(eps_l, x, 0).abs()
    y = _per_channel(weight, x, 1) * x / torch.sqrt(square + total) + _per_channel(bias, x, 0)
    return y if tau is None else torch.maximum(y, _per_channel(tau, x, 0))


def standardized_weight(weight: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Weight of a convolution, (O, I, \*), each filter with mean 0 and deviation 1.

    :math:`\hat W_{o,i}=\frac{W_{o,i}-\mu_{W_o}}{\sigma_{W_o}},\
    \sigma_{W_o}=\sqrt{\frac1I\sum_i W_{o,i}^2-\mu_{W_o}^2+\epsilon}`

    Source: Qiao et al. 2019, arXiv 1903.10520, equation 5.
    """
    weight = weight.double()
    return _standardize(weight, range(1, weight.dim()), eps)


def adaptive_layer_norm(
    x: Tensor, axes: int, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> Tensor:
    r"""Layer normalization over the last ``axes`` axes, then the scale and shift of each sample.

    :math:`y=\mathrm{LN}(x)\,(1+s)+t`, with s and t (N, \*sizes of the last axes).

    Source: Peebles & Xie 2023, arXiv 2212.09748, figure 3; its code of ``modulate``.
    """
    shape = [x.shape[0], *[1] * (x.dim() - axes - 1), *x.shape[x.dim() - axes :]]
    y = layer_norm(x, axes, eps=eps)
    return y * (1 + scale.double().reshape(shape)) + shift.double().reshape(shape)


def adaptive_group_norm(
    x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float = 1e-5
) -> Tensor:
    r"""Group normalization, then the scale and shift of each sample and channel, (N, C).

    :math:`y=\mathrm{GN}(x)\,(1+s)+t`

    Source: Dhariwal & Nichol 2021, arXiv 2105.05233, section 4.1; its code of
    ``use_scale_shift_norm``. With as many groups as channels: Huang & Belongie 2017, arXiv
    1703.06868, equation 8.
    """
    shape = [*scale.shape, *[1] * (x.dim() - 2)]
    y = group_norm(x, groups, eps=eps)
    return y * (1 + scale.double().reshape(shape)) + shift.double().reshape(shape)


def switchable_norm(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    remembered: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""Switchable normalization, (N, C, \*); ``remembered`` are the moments of evaluation.

    :math:`\hat h=\gamma\frac{h-\Sigma_{k\in\Omega}w_k\mu_k}
    {\sqrt{\Sigma_{k\in\Omega}w'_k\sigma_k^2+\epsilon}}+\beta,\
    \Omega=\{\mathrm{in},\mathrm{ln},\mathrm{bn}\}`

    Source: Luo et al. 2019, arXiv 1806.10779, equations 2 to 5.
    """
    x = x.double()
    space = list(range(2, x.dim()))
    mean, variance = torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
    shares = [torch.softmax(w.double(), 0) for w in (mean_weight, var_weight)]
    for k, axes in enumerate((space, [1, *space], [0, *space])):
        mu = x.mean(axes, keepdim=True)
        sigma2 = ((x - mu) ** 2).mean(axes, keepdim=True)
        if k == 2 and remembered is not None:
            mu, sigma2 = (_per_channel(t, x, 0) for t in remembered)
        mean, variance = mean + shares[0][k] * mu, variance + shares[1][k] * sigma2
    xhat = (x - mean) / torch.sqrt(variance + eps)
    return _per_channel(weight, x, 1) * xhat + _per_channel(bias, x, 0)


def ema(values: Sequence[Tensor], share: float, start: Tensor, kind: str = "exponential") -> Tensor:
    r"""Return the running average of a layer after it has seen ``values`` in turn.

    ``share`` :math:`m` is the share *replaced* (PyTorch's ``momentum``); the share *kept* is
    :math:`1-m`.

    - ``"exponential"``: :math:`r_t=(1-m)\,r_{t-1}+m\,v_t`, from ``start``.
    - ``"cumulative"``: :math:`\frac1t\sum_{i\le t} v_i`.
    - ``"debiased"``: :math:`\sum_i(1-m)^{t-i}v_i\big/\sum_i(1-m)^{t-i}`, a running sum over a
      running count, as Caffe's BatchNormLayer keeps it.
    """
    values = [v.double() for v in values]
    if kind == "cumulative":
        return torch.stack(values).mean(0)
    if kind == "debiased":
        weights = [(1 - share) ** (len(values) - 1 - i) for i in range(len(values))]
        total = torch.stack([k * v for k, v in zip(weights, values, strict=True)]).sum(0)
        return total / sum(weights)
    average = start.double()
    for v in values:
        average = (1 - share) * average + share * v
    return average
