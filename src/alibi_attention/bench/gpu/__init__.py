"""One command for a borrowed GPU: the kernels' checks, then benchmarks against the peers that exist there.

``python benchmarks/gpu.py`` from a checkout. Needs torch and Triton, the C compiler and Python's headers that Triton
builds with, and nothing else. It measures in a process of its own, so that a kernel which takes the device down costs
its own case and no other, and every result is on disk as soon as it is known.
"""
