"""Ranks of targets and what is computed from them."""
