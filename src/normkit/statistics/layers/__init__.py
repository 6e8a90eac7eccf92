"""Layers of a model that keep running statistics: find them, and restore what was changed."""
