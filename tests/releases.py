"""What other releases of torch do otherwise, where a test compares with them."""

from __future__ import annotations

import torch

from normkit.compat import release

__all__ = ["REFUSES_ZERO_EPS", "ROUNDS_IN_EVALUATION"]

_RELEASE = release(torch.__version__)

# Batch normalization, in evaluation too. 2.12 refuses it in training alone, as ours do.
REFUSES_ZERO_EPS = (2, 10) <= _RELEASE < (2, 12)

# Instance normalization writes its running statistics back in evaluation, averaged over copies.
ROUNDS_IN_EVALUATION = _RELEASE < (2, 11)
