"""Hold the ops, one folder each: definition, packing, C++ and Triton kernels, gradients."""
