"""Goes away with its only caller, the old runs/reader.py."""

import math
from typing import Any


def is_number(value: Any) -> bool:
    """A finite number; neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
