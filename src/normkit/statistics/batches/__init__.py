"""Batches of users: loaders, read without disturbing them, and the inputs of a model."""
