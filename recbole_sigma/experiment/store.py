"""Where experiments keep their runs: one directory each, named by the hash of everything that determines the run.

<checkpoint_dir>/<key>/settings.yaml      what is to be run
<checkpoint_dir>/<key>/log.txt            what the run's process printed
<checkpoint_dir>/<key>/<run directory>/   as `run` writes it
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recbole_sigma
from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import identity
from recbole_sigma.config.values import dump_settings
from recbole_sigma.data.atomic import file_digest
from recbole_sigma.data.fields import feature_paths
from recbole_sigma.errors import UserError
from recbole_sigma.registry import model_name, source_digest
from recbole_sigma.runs.files import read_json, write_text


def run_key(config: Config) -> str:
    """Hash of everything that determines a run's numbers: settings, files that are read, version of this package.

    A model of the user's own has no version: its source counts.
    """
    data = Path(config["data_path"])
    determines: dict[str, Any] = {
        "settings": identity(config.settings()) | {"nproc": config["nproc"]},
        "data": file_digest(data / f"{config.dataset}.inter"),
        **{part: file_digest(data / f"{config.dataset}.{part}.inter") for part in config["benchmark_filename"] or ()},
        "version": recbole_sigma.__version__,
        "processes": config["nproc"],
    }
    if features := {path.name: file_digest(path) for path in feature_paths(config)}:
        determines["features"] = features
    if source := source_digest(config.model_class):
        determines["source"] = source
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:16]


def prepare(config: Config, machine: Mapping[str, Any], parent: Path) -> Path:
    """Write `settings.yaml` into the run's directory `parent/<key>/` and return that directory.

    Settings in `machine` win; they do not change the key. Raises UserError if the directory cannot be written, and for
    a model class that another process cannot import.
    """
    directory = parent.absolute() / run_key(config)
    settings = {**config.settings(), **machine, "checkpoint_dir": str(directory)}
    settings["model"] = model_name(config.model_class, importable=True)
    make_directory(directory)
    write_text(directory / "settings.yaml", dump_settings(settings))
    return directory


def make_directory(directory: Path) -> None:
    """Make a directory below checkpoint_dir, unless it is there. Raises UserError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"checkpoint_dir: cannot make the directory {directory}: {error.strerror}") from None


def complete_run(directory: Path, *, tested: bool = False) -> Path | None:
    """The run directory in `directory` that has a result, if any; with `tested`, a result on test."""
    files = sorted(directory.glob("[!.]*/result.json"))
    return next((file.parent for file in files if not (tested and read_json(file, dict).get("trial"))), None)


def furthest_run(directory: Path) -> Path | None:
    """The complete run directory in `directory`, else the one with the most epochs, if any."""

    def epochs(folder: Path) -> int:
        file = folder / "metrics.csv"  # may be damaged: `resume` writes it again
        return file.read_bytes().count(b"\n") if file.is_file() else 0

    unfinished = (file.parent for file in sorted(directory.glob("[!.]*/config.yaml")))
    return complete_run(directory) or max(unfinished, key=epochs, default=None)
