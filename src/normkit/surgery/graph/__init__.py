"""Graphs that ``torch.compile`` records: which operations the fused kernels can compute there."""
