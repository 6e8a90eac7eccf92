"""Benchmarks: how fast the layers are, against ``torch.nn`` and against the memory's own speed.

What is measured is data (:mod:`normkit.bench.cases`); both sides of a comparison run in one
process, in turn (:mod:`normkit.bench.measuring`), each allocator in a process of its own
(:mod:`normkit.bench.running`); figures and targets come from the records
(:mod:`normkit.bench.summary`), and ``normkit bench`` shows them (:mod:`normkit.bench.show`).
"""
