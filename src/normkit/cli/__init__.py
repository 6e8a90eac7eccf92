"""The command line: parse, call, print. What it does lives elsewhere."""
