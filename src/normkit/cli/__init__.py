"""Command line: parse, call, print. What it does lives elsewhere."""

__all__ = ["INTERRUPTED", "USAGE"]

# Exit codes: wrong use, as all of Unix has it; and 128 + SIGINT.
USAGE = 2
INTERRUPTED = 130
