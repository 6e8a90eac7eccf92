"""Parts of ``benchmarks/gpu.py``: budget, cases, correctness, timing, networks, limits, page."""
