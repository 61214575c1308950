"""State-space sequential recommenders inside RecBole.

Names are imported when they are first used (PEP 562): `import recbole_sigma` imports neither torch nor RecBole.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Transparent huge pages for torch's CPU tensors: large new tensors then cost far fewer page faults (about a fifth of
# a training step). torch reads the variable when it is first imported; a value that the user has set stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from recbole_sigma.config.config import Config
    from recbole_sigma.errors import UserError
    from recbole_sigma.inference.full_sort import full_sort_scores, full_sort_topk
    from recbole_sigma.inference.recommender import Recommender
    from recbole_sigma.quick_start import load_data_and_model, resume, run
    from recbole_sigma.registry import register
    from recbole_sigma.runs.result import RunResult

__version__ = "0.1.0"
__all__ = [
    "Config", "Recommender", "RunResult", "UserError", "__version__", "full_sort_scores", "full_sort_topk",
    "load_data_and_model", "register", "resume", "run",
]  # fmt: skip

_MODELS = ("SIGMA", "Mamba4Rec", "ECHO", "RecMamba", "EMARec", "LinRec", "GRU4Rec", "SASRec", "BERT4Rec", "FEARec")
_MODULES = {
    "Config": "config.config",
    "Recommender": "inference.recommender",
    "RunResult": "runs.result",
    "UserError": "errors",
    "full_sort_scores": "inference.full_sort",
    "full_sort_topk": "inference.full_sort",
    "load_data_and_model": "quick_start",
    "register": "registry",
    "resume": "quick_start",
    "run": "quick_start",
    **{name: f"model.{name.lower()}" for name in _MODELS},
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"recbole_sigma.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
