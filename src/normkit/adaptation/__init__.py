"""Evaluate models on other data than training's: statistics of the data, entropy, banks."""

from normkit.adaptation.adapt import adapt
from normkit.adaptation.domains import adapt_domains
from normkit.adaptation.handle import Adaptation
from normkit.adaptation.order import Order
from normkit.adaptation.tent import Tent, tent

__all__ = ["Adaptation", "Order", "Tent", "adapt", "adapt_domains", "tent"]
