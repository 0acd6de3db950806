"""Kernels for CPUs without torch: `csrc/` behind a C interface."""
