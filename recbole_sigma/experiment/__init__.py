"""Experiments: many runs from one description, and reports of what they came to."""
