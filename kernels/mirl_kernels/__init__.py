"""Run sparse image restoration ops: in C++ on processors, in Triton on GPUs, in PyTorch by definition."""
