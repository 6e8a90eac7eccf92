"""Measures of single claims, with their charts and tables."""
