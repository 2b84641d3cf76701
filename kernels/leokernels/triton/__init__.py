"""Kernels in Triton, for NVIDIA GPUs from compute capability 8.0 on. Nothing outside this package imports triton.

Under `TRITON_INTERPRET=1`, set before triton is imported, the same kernels run on CPU tensors, slowly, for tests.
"""
