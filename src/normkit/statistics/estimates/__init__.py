"""Statistics as numbers: moments, their standard errors and bias, and gaps between them."""
