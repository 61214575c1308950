"""Settings: their values, the schema that checks them, and the Config of a run."""
