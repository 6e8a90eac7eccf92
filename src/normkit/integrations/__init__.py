"""Integrations with other frameworks; import the one you need, none is imported by default."""
