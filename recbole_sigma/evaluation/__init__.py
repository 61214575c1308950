"""Ranks of targets, and metrics, user groups and significance tests computed from them."""
