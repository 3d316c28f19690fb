"""The quantizers as Triton kernels."""
