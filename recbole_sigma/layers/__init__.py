"""Parts that models are made of, named as in the papers."""
