"""The HTTP service: a run's model behind FastAPI. docs/serving.md describes what clients and operators see."""
