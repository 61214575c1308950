"""Mistakes that names and values show by themselves: found before torch and RecBole are imported, which takes seconds.

What is not found here, such as a value that only the model's class can judge, is found by Config.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from recbole_sigma.config.schema import check, needs_no_default
from recbole_sigma.config.values import Given, properties_path, read_config_files
from recbole_sigma.errors import UserError, did_you_mean


@cache
def recbole_path() -> Path:
    """The directory of RecBole's package, found without importing it."""
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("RecBole is not installed: pip install recbole")
    return Path(spec.submodule_search_locations[0])


def check_dataset(dataset: str) -> None:
    """Refuse what cannot be the name of a directory: it is part of paths, such as the run directory's."""
    unsafe = not dataset.isprintable() or dataset in ("", ".", "..") or {"/", "\\"} & {*dataset}
    if unsafe or len(dataset.encode()) > 100:
        right = "the name of a directory in data_path, of at most 100 bytes"
        raise UserError(f"dataset must be {right}, got {dataset!r}")


def data_folder(dataset: str, data_path: Path) -> Path:
    """The data set's directory. ml-100k is RecBole's own copy, unless `data_path` has one."""
    folder = data_path / dataset
    if dataset == "ml-100k" and not folder.is_dir():
        return recbole_path() / "dataset_example" / dataset
    if not folder.is_dir():  # RecBole would start to download
        names = [path.name for path in data_path.iterdir() if path.is_dir()] if data_path.is_dir() else []
        hint = did_you_mean(dataset, [*names, "ml-100k"]) or "; set --data_path to the directory of data sets"
        raise UserError(f"unknown data set {dataset!r}: there is no directory {str(folder)!r}{hint}")
    return folder


def check_early(model: str, dataset: str, given: Mapping[str, Given]) -> None:
    """Raise a UserError for a model, a data set or a setting that does not exist, and for a value of the wrong kind.

    A class of the user's own brings settings that only Config can know: of `package.module:Class` none is checked.
    """
    check_dataset(dataset)
    files = [properties_path() / file for file in ("overall.yaml", f"model/{model}.yaml", f"dataset/{dataset}.yaml")]
    defaults = read_config_files([file for file in files if file.is_file()])
    if ":" not in model:
        models, known, of_other_models = _names(model)
        if model not in models:
            raise UserError(f"unknown model {model!r}{did_you_mean(model, models)}")
        for name, value in given.items():
            if name not in known | of_other_models:
                raise value.error(f"unknown setting {name!r}{did_you_mean(name, known)}")
            if needs_no_default(name) or name in defaults:
                check(name, value, defaults.get(name, value).value, {"loss_type": ("CE", "BPR", "BCE")})
    path = given.get("data_path") or defaults.get("data_path") or Given("dataset/")
    data_folder(dataset, Path(str(path.value)))


@cache
def _names(model: str) -> tuple[list[str], set[str], set[str]]:
    """From the names of files and the keys in them: all models, the settings of `model`, those of other models."""
    recbole = recbole_path()
    modules = {file.stem for file in (recbole / "model" / "sequential_recommender").glob("*.py")}
    theirs = {file.stem for file in (recbole / "properties" / "model").glob("*.yaml") if file.stem.lower() in modules}
    ours = sorted(file.stem for file in (properties_path() / "model").glob("*.yaml"))
    lists = (recbole / "utils" / "argument_list.py").read_text(encoding="utf-8")
    known, of_other_models = {"model", "dataset", *re.findall(r"'(\w+)'", lists)}, set[str]()
    for file in [*(recbole / "properties").rglob("*.yaml"), *properties_path().rglob("*.yaml")]:
        names = re.findall(r"^(\w+)\s*:", file.read_text(encoding="utf-8"), re.MULTILINE)
        (of_other_models if file.parent.name == "model" and file.stem != model else known).update(names)
    return [*ours, *sorted(theirs - {*ours})], known, of_other_models
