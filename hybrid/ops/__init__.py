"""Numerical kernels: for each a naive reference and a fast path, with one dispatching function."""
