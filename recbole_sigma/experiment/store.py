"""Where experiments keep their runs: one directory each, named by the hash of everything that determines the run.

<checkpoint_dir>/<key>/settings.yaml      what is to be run
<checkpoint_dir>/<key>/log.txt            what the run's process printed
<checkpoint_dir>/<key>/<run directory>/   as `run` writes it
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import recbole_sigma
from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import identity
from recbole_sigma.config.values import dump_settings
from recbole_sigma.errors import UserError
from recbole_sigma.registry import model_name, source_digest
from recbole_sigma.runs.files import read_json, write_text


def run_key(config: Config) -> str:
    """Hash of everything that determines a run's numbers: its settings, its data, the version of this package.

    A model of the user's own has no version: its source counts, and the files of features that it may read.
    """
    data = Path(config["data_path"])
    determines: dict[str, Any] = {
        "settings": identity(config.settings()) | {"nproc": config["nproc"]},
        "data": _file_digest(data / f"{config.dataset}.inter"),
        **{part: _file_digest(data / f"{config.dataset}.{part}.inter") for part in config["benchmark_filename"] or ()},
        "version": recbole_sigma.__version__,
        "processes": config["nproc"],
    }
    if source := source_digest(config.model_class):
        determines["source"] = source
        determines["features"] = [_file_digest(data / f"{config.dataset}.{kind}") for kind in ("user", "item")]
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


def _file_digest(file: Path) -> str:
    """SHA-256 of a file, "" if it cannot be read (the run says so); read again only after it has changed."""
    try:
        stat = file.stat()
        return _digest_of(file, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return ""


@functools.cache
def _digest_of(file: Path, _modified: int, _size: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
