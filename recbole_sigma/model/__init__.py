"""One file a model. `registry.find_model` finds them by name."""
