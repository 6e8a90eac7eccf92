"""Every source once; a claim says which part of it, and what it states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from normkit.lab.findings import AtScale, Reference, ScaleWord

__all__ = ["Source", "figures"]


@dataclasses.dataclass(frozen=True)
class Source:
    """Something published, with its address if it has one."""

    name: str
    url: str = ""

    def says(self, figures: str, where: str = "", url: str = "") -> Reference:
        """Make the reference for a statement, with the part or the network it is about.

        >>> IOFFE.says("an argument; no figures", "§3.3").source
        'Ioffe & Szegedy 2015, Batch Normalization, §3.3'
        """
        return Reference(f"{self.name}, {where}" if where else self.name, figures, url or self.url)

    def agrees(self, figures: str, where: str = "", url: str = "") -> AtScale:
        """Name a larger study that found what the claim says.

        >>> WU_HE.agrees("24.1 % at every batch size", "ResNet-50 on ImageNet").word
        'agrees'
        """
        return self._at_scale("agrees", self.says(figures, where, url))

    def contradicts(self, figures: str, where: str = "", url: str = "") -> AtScale:
        """Name a larger study that found otherwise."""
        return self._at_scale("contradicts", self.says(figures, where, url))

    def larger(self, figures: str, where: str = "", url: str = "") -> AtScale:
        """Name a larger study of an effect that networks as small as ours cannot show."""
        return self._at_scale("too small to show here", self.says(figures, where, url))

    def _at_scale(self, word: ScaleWord, reference: Reference) -> AtScale:
        return AtScale(word, reference.figures, reference.source, reference.url)


def figures(values: Iterable[float | None]) -> str:
    """Published values in a sentence.

    >>> figures((23.6, 24.8, 27))
    '23.6 24.8 27'
    """
    return " ".join("–" if value is None else f"{value:g}" for value in values)


ARTICLE = Source("An implementation of batch normalization in PyTorch (article)")
BAYES_NOTES = Source("Notes on batch normalization from a Bayesian view (article)")
NOTES = Source("Notes on batch normalization (articles)")
RESNET_NOTES = Source(
    "Notes on batch normalization, ResNet and DenseNet with Gluon and d2l (article)"
)
COMPARED = Source("Normalization compared: BN, LN, GN, IN (article)")
RETHINKING = Source('Rethinking "Batch" in BatchNorm (article)')
RETHINKING_NOTES = Source('Notes on Rethinking "Batch" in BatchNorm (article)')
CAFFE = Source(
    "Caffe, examples/cifar10, the quick network without batch normalization",
    "https://caffe.berkeleyvision.org/gathered/examples/cifar10.html",
)
D2L = Source("Dive into Deep Learning (d2l)", "https://d2l.ai/chapter_convolutional-modern/")
IOFFE = Source("Ioffe & Szegedy 2015, Batch Normalization", "https://arxiv.org/abs/1502.03167")
HE = Source(
    "He et al. 2015, Deep Residual Learning for Image Recognition",
    "https://arxiv.org/abs/1512.03385",
)
HUANG = Source(
    "Huang et al. 2016, Densely Connected Convolutional Networks",
    "https://arxiv.org/abs/1608.06993",
)
GITMAN = Source(
    "Gitman & Ginsburg 2017, Comparison of Batch Normalization and Weight Normalization "
    "Algorithms for the Large-scale Image Classification",
    "https://arxiv.org/abs/1709.08145",
)
WU_HE = Source("Wu & He 2018, Group Normalization", "https://arxiv.org/abs/1803.08494")
WU_JOHNSON = Source(
    'Wu & Johnson 2021, Rethinking "Batch" in BatchNorm', "https://arxiv.org/abs/2105.07576"
)
CHEN = Source(
    "Chen et al. 2021, HINet: Half Instance Normalization Network for Image Restoration",
    "https://arxiv.org/abs/2105.06086",
)

BJORCK = Source(
    "Bjorck et al. 2018, Understanding Batch Normalization", "https://arxiv.org/abs/1806.02375"
)
FRANKLE = Source(
    "Frankle et al. 2021, Training BatchNorm and Only BatchNorm", "https://arxiv.org/abs/2003.00152"
)
SANTURKAR = Source(
    "Santurkar et al. 2018, How Does Batch Normalization Help Optimization?",
    "https://arxiv.org/abs/1805.11604",
)
YANG = Source(
    "Yang et al. 2019, A Mean Field Theory of Batch Normalization",
    "https://arxiv.org/abs/1902.08129",
)
VAN_LAARHOVEN = Source(
    "van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization",
    "https://arxiv.org/abs/1706.05350",
)
JUNG = Source(
    "Jung et al. 2018, Restructuring Batch Normalization to Accelerate CNN Training",
    "https://arxiv.org/abs/1807.01702",
)
SCHNEIDER = Source(
    "Schneider et al. 2020, Improving robustness against common corruptions by covariate shift "
    "adaptation",
    "https://arxiv.org/abs/2006.16971",
)
BENZ = Source(
    "Benz et al. 2021, Revisiting Batch Normalization for Improving Corruption Robustness",
    "https://arxiv.org/abs/2010.03630",
)
GONG = Source(
    "Gong et al. 2022, NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation",
    "https://arxiv.org/abs/2208.05117",
)
KOHLER = Source(
    "Kohler et al. 2018, Exponential convergence rates for Batch Normalization",
    "https://arxiv.org/abs/1805.10694",
)
ZHU = Source(
    "Zhu et al. 2025, Transformers without Normalization", "https://arxiv.org/abs/2503.10622"
)
CHEN_DERF = Source(
    "Chen et al. 2025, Stronger Normalization-Free Transformers",
    "https://arxiv.org/abs/2512.10938",
)
VERMA = Source("Verma 2026, When Does Removing LayerNorm Help?", "https://arxiv.org/abs/2604.23434")
ALEKSEEV = Source(
    "Alekseev 2026, Subcritical Signal Propagation at Initialization in Normalization-Free "
    "Transformers",
    "https://arxiv.org/abs/2604.11890",
)
TORCHVISION = Source("torchvision, models", "https://pytorch.org/vision/0.8/models.html")

CAFFE_QUICK = CAFFE.says("75.33 % on CIFAR-10 after 5,000 iterations")
