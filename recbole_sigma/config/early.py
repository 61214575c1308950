"""Mistakes that names and values show by themselves: found before torch and RecBole are imported, which takes seconds.

What is not found here, such as a value that only the model's class can judge, is found by Config.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from recbole_sigma.config.schema import check, needs_no_default
from recbole_sigma.config.values import CATALOGUE, Given, properties_path, read_defaults, recbole_path
from recbole_sigma.errors import UserError, did_you_mean


def check_dataset(dataset: str) -> None:
    """Refuse what cannot be the name of a directory: it is part of paths, such as the run directory's."""
    unsafe = not dataset.isprintable() or dataset in ("", ".", "..") or {"/", "\\"} & {*dataset}
    if unsafe or len(dataset.encode()) > 100:
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
    files = [properties_path() / file for file in ("overall.yaml", f"model/{model}.yaml", f"dataset/{dataset}.yaml")]
    defaults = read_defaults([file for file in files if file.is_file()])
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
    download = given.get("download") or defaults["download"]
    data_folder(dataset, Path(str(path.value)), download.value, get=False)


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
    known.discard(CATALOGUE)
    return [*ours, *sorted(theirs - {*ours})], known, of_other_models
