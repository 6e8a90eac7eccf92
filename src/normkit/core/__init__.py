"""Mathematics, said once: pools, moments, activations, the formula and its oracle."""
