"""Mistakes that names and values show by themselves: found before torch and RecBole are imported, which takes seconds.

What is not found here, such as a value that only the model's class can judge, is found by Config.
"""

import ast
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recbole_sigma.config.schema import check, needs_no_default
from recbole_sigma.config.values import (
    CATALOGUE,
    Given,
    properties_path,
    read_config_file,
    read_config_files,
    read_defaults,
    recbole_path,
    schemas,
)
from recbole_sigma.errors import UserError, did_you_mean, one_line

# Settings that RecBole's code reads, or once read, and that have no default in its files.
WITHOUT_DEFAULT = {"encoding", "reg_weight", "use_filter", "world_size", "offset", "ip", "port"}
_LOSSES = {"loss_type": ("CE", "BPR", "BCE")}
# What other libraries call a setting.
_OTHER_NAMES = {
    "lr": "learning_rate", "batch_size": "train_batch_size", "bs": "train_batch_size", "max_epochs": "epochs",
    "n_epochs": "epochs", "num_epochs": "epochs", "max_len": "MAX_ITEM_LIST_LENGTH", "maxlen": "MAX_ITEM_LIST_LENGTH",
    "max_seq_length": "MAX_ITEM_LIST_LENGTH", "dropout": "dropout_prob", "dropout_rate": "dropout_prob",
    "patience": "stopping_step", "optimizer": "learner", "device": "use_gpu", "gpu": "gpu_id", "k": "topk",
    "dim": "hidden_size", "d_model": "hidden_size", "embedding_dim": "hidden_size", "wd": "weight_decay",
    "l2": "weight_decay", "random_seed": "seed", "output_dir": "checkpoint_dir", "data_dir": "data_path",
    "lr_scheduler": "schedule", "scheduler": "schedule", "ema": "weight_average",
}  # fmt: skip


def check_dataset(dataset: object) -> None:
    """Refuse what cannot be the name of a directory: it is part of paths, such as the run directory's."""
    name = dataset if isinstance(dataset, str) else ""
    unsafe = not name.isprintable() or name in ("", ".", "..") or {"/", "\\"} & {*name}
    if unsafe or len(name.encode()) > 100:
        right = "the name of a directory in data_path, of at most 100 bytes"
        raise UserError(f"dataset must be {right}, got {dataset!r}")


def data_folder(dataset: str, data_path: Path, download: bool | None = None, *, get: bool = True) -> Path:
    """The data set's directory. ml-100k is RecBole's own copy, unless `data_path` has one.

    One that is missing and known is downloaded, or with `get=False` only checked. Raises UserError if it cannot be.
    """
    folder = data_path / dataset
    if dataset == "ml-100k":
        return folder if folder.is_dir() else recbole_path() / "dataset_example" / dataset
    from recbole_sigma.convert import get as known

    if not known.is_present(dataset, data_path):
        make = known.get if get else known.check_download
        make(dataset, data_path, download)
    return folder


def check_early(model: str, dataset: str, given: Mapping[str, Given]) -> None:
    """Raise a UserError for a model, a data set or a setting that does not exist, and for a value of the wrong kind.

    A class of the user's own brings settings that only Config can know: of `package.module:Class` none is checked.
    """
    check_dataset(dataset)
    own, ours = properties_path() / "model" / f"{model}.yaml", properties_path() / "overall.yaml"
    files = [ours, own, properties_path() / "dataset" / f"{dataset}.yaml"]
    defaults = read_defaults([file for file in files if file.is_file()])
    check_model(model)
    if ":" not in model:
        _, known, of_models = _names(model)
        choices = {name: tuple(schema["choices"]) for name, schema in schemas().items() if "choices" in schema}
        for name, value in given.items():
            # Only RecBole's own models are derived from one another, and have settings of others.
            if name not in known and (own.is_file() or name not in of_models):
                raise value.error(unknown_setting(name, model, known, of_models.get(name, ())))
            if name in defaults or needs_no_default(name):
                check(name, value, defaults.get(name, value).value, choices if own.is_file() else _LOSSES)
            elif "unsupported" in schemas().get(name, {}):
                check(name, value, _recbole_defaults(model).get(name), {})
    path = given.get("data_path") or defaults.get("data_path") or Given("dataset/")
    download = given.get("download") or defaults["download"]
    data_folder(dataset, Path(str(path.value)), download.value, get=False)


def read_run(start: Given, name: str = "init_from") -> dict[str, Given]:
    """The settings of the run that the setting `name` names. Raises UserError if it is none, or has no weights."""
    folder = Path(str(start.value))
    for file in ("config.yaml", "model.safetensors"):
        if not (folder / file).is_file():
            raise start.error(f"{name}: {str(start.value)!r} is not a run directory with a {file}")
    saved = read_config_file(folder / "config.yaml")
    for key in ("model", "dataset"):
        if not isinstance(saved.get(key, Given(None)).value, str):
            raise UserError(f"{folder / 'config.yaml'}: not the settings of a run: it has no {key}")
    return saved


def check_model(model: str) -> None:
    """Refuse a name that no model has, and a `package.module:Class` that is not where it should be."""
    if ":" in model:
        _check_module(model)
    elif model not in (models := _names(model)[0]):
        raise UserError(f"unknown model {model!r}{_why_unknown(model, models)}")


def unknown_setting(name: str, model: str, known: Collection[str], others: Sequence[str] = ()) -> str:
    """The message for a setting that `model` does not have; `others` are models that have it."""
    hint = did_you_mean(_OTHER_NAMES.get(name, name), known)
    if others and not hint:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        hint = f"; it is a setting of {', '.join(others[:4])}{more}"
    return f"unknown setting {name!r} of {model}{hint}"


def _why_unknown(model: str, models: Sequence[str]) -> str:
    """Why RecBole's model cannot be trained here, or the nearest name."""
    folders = [file.parent.name for file in (recbole_path() / "model").glob(f"*/{model.lower()}.py")]
    if folders and folders[0] != "sequential_recommender" and model.lower() != "init":
        kind = folders[0].removesuffix("_recommender").replace("_", "-")
        return f": it is one of RecBole's {kind} models, which do not read histories; train it with RecBole itself"
    return did_you_mean(model, models)


def _check_module(model: str) -> None:
    """Refuse a `package.module:Class` whose file is missing, is no Python or does not name the class.

    Nothing is imported. What is not a file, or has a `__getattr__` of its own, is left to the import.
    """
    module, _, class_name = model.partition(":")
    path, spec = [str(Path.cwd()), *sys.path], None
    names = module.split(".")
    if not all(map(str.isidentifier, [*names, *class_name.split(".")])):
        raise UserError(f"model must be a name or package.module:Class, got {model!r}")
    for number, name in enumerate(names):
        spec = PathFinder.find_spec(name, path) or (None if number else find_spec(name))
        if spec is None:
            where = f" in {path[0]}" if path else ""
            raise UserError(f"model {model!r}: there is no module {'.'.join(names[: number + 1])!r}{where}")
        path = list(spec.submodule_search_locations or ())
    if not spec or not str(spec.origin).endswith(".py"):
        return
    try:
        tree = ast.parse(Path(str(spec.origin)).read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"model {model!r}: {type(error).__name__}: {one_line(error)} in {spec.origin}:{line}") from None
    bound = {getattr(each, "name", None) or getattr(each, "id", None) for each in ast.walk(tree)}
    bound |= {
        alias.asname or alias.name
        for each in ast.walk(tree)
        for alias in getattr(each, "names", ())
        if isinstance(alias, ast.alias)
    }
    name = class_name.partition(".")[0]
    if not {name, "*", "__getattr__"} & bound:
        classes = [each.name for each in tree.body if isinstance(each, ast.ClassDef)]
        raise UserError(f"model {model!r}: {spec.origin} has no class {name!r}{did_you_mean(name, classes)}")


@cache
def _recbole_defaults(model: str) -> dict[str, Any]:
    names = ("overall.yaml", "dataset/sample.yaml", f"model/{model}.yaml")
    files = filter(Path.is_file, (recbole_path() / "properties" / name for name in names))
    return {name: given.value for name, given in read_config_files([*files]).items()}


@cache
def _names(model: str) -> tuple[list[str], set[str], dict[str, list[str]]]:
    """From the names of files and the keys in them: all models, settings of `model`, models by setting of theirs."""
    recbole = recbole_path()
    modules = {file.stem for file in (recbole / "model" / "sequential_recommender").glob("*.py")}
    theirs = {file.stem for file in (recbole / "properties" / "model").glob("*.yaml") if file.stem.lower() in modules}
    ours = sorted(file.stem for file in (properties_path() / "model").glob("*.yaml"))
    lists = (recbole / "utils" / "argument_list.py").read_text(encoding="utf-8")
    known, of_models = {"model", "dataset", *WITHOUT_DEFAULT, *re.findall(r"'(\w+)'", lists)}, dict[str, list[str]]()
    yaml_files = [file for parent in (properties_path(), recbole / "properties") for file in parent.rglob("*.yaml")]
    for file in sorted(yaml_files):
        if file.name in ("schema.yaml", "url.yaml") or file.parent.name == "experiment":
            continue
        names = re.findall(r"^(\w+)\s*:", file.read_text(encoding="utf-8"), re.MULTILINE)
        if file.parent.name != "model" or file.stem == model:
            known.update(names)
        elif file.stem in theirs | {*ours}:
            for name in names:
                of_models[name] = list(dict.fromkeys([*of_models.get(name, []), file.stem]))
    known -= {CATALOGUE, "config_file"}
    return [*ours, *sorted(theirs - {*ours})], known, of_models
