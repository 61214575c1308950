"""Models by name: ours first, then RecBole's sequential ones."""

import importlib
import pkgutil
from pathlib import Path
from typing import TypeGuard

from recbole.model import sequential_recommender as recbole_models
from recbole.model.abstract_recommender import SequentialRecommender

from recbole_sigma import compat
from recbole_sigma.errors import UserError, did_you_mean

compat.apply()

_OUR_MODELS = Path(__file__).parent / "model"


def find_model(name: str) -> type:
    """The model class called `name`: `model/<lower case>.py` here, else RecBole's. Raises UserError for any other."""
    if name.lower() in _our_modules():
        module = importlib.import_module(f"recbole_sigma.model.{name.lower()}")
        found = getattr(module, name, None)
    else:
        found = getattr(recbole_models, name, None)
    if not _is_model(found):
        raise UserError(f"unknown model {name!r}{did_you_mean(name, model_names())}")
    return found


def model_names() -> list[str]:
    """Every name that `find_model` knows, ours first. Imports all of them: for help texts and messages."""
    ours = [
        name
        for stem in _our_modules()
        for name in _classes_named_as_file(importlib.import_module(f"recbole_sigma.model.{stem}"), stem)
    ]
    recbole = [name for name, each in vars(recbole_models).items() if _is_model(each)]
    return ours + [name for name in recbole if name not in ours]


def _is_model(found: object) -> TypeGuard[type]:
    return isinstance(found, type) and issubclass(found, SequentialRecommender)


def _our_modules() -> list[str]:
    """File names, without `.py`, in `recbole_sigma/model`; none of them is imported."""
    return [module.name for module in pkgutil.iter_modules([str(_OUR_MODELS)])]


def _classes_named_as_file(module: object, stem: str) -> list[str]:
    """The classes of a module whose name in lower case is the file's: one for a model, none for a base class."""
    return [name for name, each in vars(module).items() if isinstance(each, type) and name.lower() == stem]
