"""The mathematics, said once: pools, moments, activations, the formula and its oracle."""
