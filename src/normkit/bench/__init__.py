"""Benchmarks: the layers' speed relative to ``torch.nn`` and to copying memory.

The cases are data (:mod:`normkit.bench.cases`). Both sides of a comparison run interleaved in one
process (:mod:`normkit.bench.stopwatch`), each allocator setting in a separate process
(:mod:`normkit.bench.processes`). :mod:`normkit.bench.summary` computes figures and targets from
the records, and ``normkit bench`` prints them (:mod:`normkit.bench.terminal`).
"""
