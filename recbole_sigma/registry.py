"""Models by name or class: ours, RecBole's sequential models, and classes of the user's own."""

import hashlib
import importlib
import pkgutil
import sys
import traceback
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import torch
from recbole.model import sequential_recommender as recbole_models
from recbole.model.abstract_recommender import SequentialRecommender
from torch import nn

from recbole_sigma import compat
from recbole_sigma.errors import UserError, did_you_mean, one_line

compat.apply()

_OUR_MODULES = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "model")])]


def find_model(model: str | type) -> type:
    """The class of a model: one of ours (`SIGMA`), of RecBole's sequential ones (`Caser`), or `package.module:Class`.

    The module is imported as `python -m` would, from the working directory first. Raises UserError for an unknown name,
    what cannot be imported, and a class that is no `SequentialRecommender`.
    """
    cls: Any = model
    hint = ": it is no SequentialRecommender"
    if isinstance(model, str) and ":" in model:
        cls = _import_class(model)
    elif isinstance(model, str):
        ours = model.lower() in _OUR_MODULES
        home = importlib.import_module(f"recbole_sigma.model.{model.lower()}") if ours else recbole_models
        cls, hint = getattr(home, model, None), ""
    if not _is_model(cls):
        raise UserError(f"unknown model {model!r}{hint or did_you_mean(str(model), model_names())}")
    return cls


def register() -> None:
    """Let RecBole's own functions find our models by name: `run_recbole(model="SIGMA")`, `get_model`, HyperTuning.

    Changes this process: RecBole looks models up as modules of its own package, and imports `kmeans_pytorch`, a package
    that it does not declare and that only its LDiffRec uses; without that package an empty module replaces it.
    """
    if find_spec("kmeans_pytorch") is None:

        def kmeans(*_: Any, **__: Any) -> None:
            raise ImportError("RecBole's LDiffRec needs the package kmeans_pytorch: pip install kmeans-pytorch")

        replacement: Any = ModuleType("kmeans_pytorch")
        replacement.__spec__, replacement.kmeans = ModuleSpec("kmeans_pytorch", None), kmeans
        sys.modules["kmeans_pytorch"] = replacement
    for stem in _OUR_MODULES:
        name = f"{recbole_models.__name__}.{stem}"
        if find_spec(name) is None:
            sys.modules[name] = importlib.import_module(f"recbole_sigma.model.{stem}")
    compat.repair_trainers()


def _import_class(path: str) -> Any:
    """What `package.module:Class` names. Runs the module's code."""
    module, _, name = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return pkgutil.resolve_name(path)
    except (Exception, SystemExit) as error:  # the user's own code runs here and may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        internal = last.filename.startswith("<") or last.filename == pkgutil.__file__
        where = "" if internal else f" in {last.filename}:{last.lineno}"
        known = vars(sys.modules[module]) if module in sys.modules else ()
        hint = "; put it into a module" if module == "__main__" else did_you_mean(name, known)
        raise UserError(f"model {path!r}: {type(error).__name__}: {one_line(error)}{where}{hint}") from None


def _is_model(cls: object) -> TypeGuard[type]:
    return isinstance(cls, type) and issubclass(cls, SequentialRecommender)


def model_names() -> list[str]:
    """Every short name that `find_model` knows, ours first. Imports all models: for help texts and messages."""
    ours = []
    for stem in _OUR_MODULES:
        module = importlib.import_module(f"recbole_sigma.model.{stem}")
        ours += [name for name, value in vars(module).items() if name.lower() == stem and _is_model(value)]
    return ours + [name for name, value in vars(recbole_models).items() if _is_model(value) and name not in ours]


def model_name(cls: type, *, importable: bool = False) -> str:
    """The name under which `find_model` finds a class: `SIGMA`, or `package.module:Class` for one of the user's own.

    With `importable`, raises UserError if another process cannot import the class: of a script or a function.
    """
    if _is_bundled(cls) and find_model(cls.__name__) is cls:
        return cls.__name__
    name = f"{cls.__module__}:{cls.__qualname__}"
    if importable and (cls.__module__ == "__main__" or "<locals>" in name):
        raise UserError(f"model: another process cannot import {name!r}; put the class into a module")
    return name


def source_digest(cls: type) -> str | None:
    """SHA-256 of the source files of a user's own class and its bases; None for our and RecBole's classes."""
    own = [base.__module__ for base in cls.__mro__ if not _is_bundled(base)]
    files = dict.fromkeys(getattr(sys.modules[module], "__file__", None) for module in own)
    contents = [Path(file).read_bytes() for file in files if file]
    return hashlib.sha256(b"".join(contents)).hexdigest() if contents else None


def _is_bundled(cls: type) -> bool:
    """Whether the class is part of a package whose version is recorded with a run, or of Python."""
    return cls.__module__.partition(".")[0] in {"recbole_sigma", "recbole", "torch"} | sys.stdlib_module_names


def build_model(config: Any, dataset: Any) -> nn.Module:
    """The model of `config`, new, on its device; UserError where one of RecBole's refuses its settings or data."""
    from recbole_sigma.model.corrections import corrected

    try:
        model: nn.Module = corrected(config.model_class, config)(config, dataset)
    except (ValueError, KeyError, NotImplementedError, AssertionError) as error:
        if not config.model_class.__module__.startswith("recbole."):
            raise  # in our models or the user's own this is a bug, whose traceback is wanted
        raise UserError(f"model: {config.model} cannot be built with these settings and data ({error})") from None
    return model.to(config["device"])


def n_parameters(config: Any, n_items: int) -> int:
    """Number of trained parameters for a data set of `n_items` items, counted without allocating them."""
    from recbole_sigma.data.items import Items  # recbole_sigma.data imports Config, which imports this module

    with torch.device("meta"):
        model = config.model_class(config, Items(n_items))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
