"""Real data, verified, in memory: Fashion-MNIST, CIFAR-10 and CIFAR-100.

>>> from normkit.lab import data
>>> fashion = data.load("fashion-mnist", offline=True)
>>> images, labels = next(data.batches(fashion.train, 32, seed=0))
>>> images.shape, images.dtype
(torch.Size([32, 1, 28, 28]), torch.float32)
"""

from __future__ import annotations

from normkit.lab.data.batches import batches
from normkit.lab.data.catalogue import SPECS
from normkit.lab.data.loading import Status, fetch, is_here, load, status
from normkit.lab.data.split import Dataset, Split

NAMES: tuple[str, ...] = tuple(SPECS)
"""Names of the data sets that :func:`load` knows."""

__all__ = ["NAMES", "Dataset", "Split", "Status", "batches", "fetch", "is_here", "load", "status"]
