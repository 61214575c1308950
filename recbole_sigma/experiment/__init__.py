"""Experiments and sweeps: many runs from one description."""
