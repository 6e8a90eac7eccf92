"""Models and batches by grammar, and every tool held to its promise on them."""
