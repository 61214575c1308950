"""Training: the trainer, its checkpoint, callbacks and process groups."""
