"""Processes that measure together."""
