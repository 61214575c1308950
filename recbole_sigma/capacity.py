"""Until quick_start no longer imports it: names that have moved."""

from contextlib import AbstractContextManager

from recbole_sigma.errors import out_of_memory
from recbole_sigma.registry import build_model

__all__ = ["build_model", "memory_told"]


def memory_told(_config: object) -> AbstractContextManager[None]:  # use errors.out_of_memory()
    return out_of_memory()
