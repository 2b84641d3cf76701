"""Paged FlashAttention-2 and the fused kernels of leoserve."""
