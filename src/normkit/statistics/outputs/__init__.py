"""Outputs of a model in two modes, compared over all batches."""
