"""Sparse kernels for image restoration: C++ for processors, Triton for GPUs, PyTorch as the definition."""
