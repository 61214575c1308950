"""CPU kernels, compiled by numba on first use."""
