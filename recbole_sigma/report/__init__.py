"""Reports of recorded runs."""
