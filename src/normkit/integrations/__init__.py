"""Connections to other frameworks, each imported only by whoever uses it."""
