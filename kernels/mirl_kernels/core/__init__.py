"""Hold what the ops share: the C++ library, Triton's launches, and the roofline of this machine."""
