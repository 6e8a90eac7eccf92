"""Evaluate models on other data than training's: statistics of the data, entropy, banks."""

from normkit.adaptation.adapt import adapt
from normkit.adaptation.handle import Adaptation
from normkit.adaptation.order import Order

__all__ = ["Adaptation", "Order", "adapt"]
