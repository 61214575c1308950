"""A trained model away from its data: recommendations for any history, live sessions, batches from files."""
