"""Triton kernels for GPUs.

Triton is imported by what holds kernels and by nothing else: importing :mod:`normkit`, this module
and :mod:`normkit.kernels.triton.problem` needs no Triton and no GPU.
"""
