"""One run on disk: its directory, its result, and the one reader of both."""
