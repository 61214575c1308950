"""State-space sequential recommenders inside RecBole."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Transparent huge pages for torch's CPU tensors: fresh big tensors then cost far fewer page faults (about a fifth of
# a training step). torch reads it once, when it is first imported; a value that the user has set stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from recbole_sigma.config.config import Config
    from recbole_sigma.errors import UserError
    from recbole_sigma.quick_start import resume, run

__version__ = "0.1.0"
__all__ = ["Config", "UserError", "__version__", "resume", "run"]

_HOME = {
    "Config": "recbole_sigma.config.config",
    "UserError": "recbole_sigma.errors",
    "resume": "recbole_sigma.quick_start",
    "run": "recbole_sigma.quick_start",
}


def __getattr__(name: str) -> Any:
    """Import an exported name when it is first asked for (PEP 562): `import recbole_sigma` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
