"""Where the runs of experiments are: a folder for each, named by the hash of all that determines it.

Whatever experiment asks for a run, in whatever order, after whatever interruption: it is trained once.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import recbole_sigma
from recbole_sigma.experiment.spec import Planned
from recbole_sigma.quick_start import MAY_CHANGE

# Where a run is, how fast it goes and what it tells on the way do not determine what it comes to; when it ends does.
_DETERMINE = ("epochs", "stopping_step")
IRRELEVANT = frozenset(MAY_CHANGE) - set(_DETERMINE)
_KEY_LENGTH = 16  # hexadecimal digits


@dataclass(frozen=True)
class Slot:
    """A run's place: `<checkpoint_dir>/<key>/`, where its folder is, or will be."""

    planned: Planned
    path: Path

    def complete(self) -> Path | None:
        """The folder of the complete run, if there is one."""
        return next((folder for folder in self._folders() if (folder / "result.json").is_file()), None)

    def ended(self) -> Path | None:
        """The folder of a run that can be gone on with; of several, the one that got furthest."""
        folders = [folder for folder in self._folders() if not (folder / "result.json").is_file()]
        return max(folders, key=_epochs, default=None)

    def take(self) -> int | None:
        """A lock on the place, an open file that its process keeps; None while another experiment trains there."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:
            pass  # a file system without locks
        return lock

    @property
    def log(self) -> Path:
        """What the run's process printed."""
        return self.path / "log.txt"

    def _folders(self) -> list[Path]:
        return sorted(file.parent for file in self.path.glob("[!.]*/config.yaml"))


def slot_of(planned: Planned, checkpoint_dir: Path) -> Slot:
    """The place of a run. Reads the data set's file for its checksum."""
    return Slot(planned, checkpoint_dir / key_of(planned))


def key_of(planned: Planned) -> str:
    """Hash of the settings that determine a run, of its data, and of the version of this package."""
    settings = {key: value for key, value in planned.config.settings().items() if key not in IRRELEVANT}
    data = Path(planned.config["data_path"]) / f"{planned.dataset}.inter"
    determines = {
        "settings": settings,
        "data": _sha256(data),
        "version": recbole_sigma.__version__,
        "processes": planned.config["nproc"],
    }
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


_sums: dict[tuple[str, float, int], str] = {}


def _sha256(file: Path) -> str:
    """Of a file's bytes, read once while it does not change; nothing for one that is not there: the run says so."""
    try:
        stat = file.stat()
        key = (str(file), stat.st_mtime, stat.st_size)
        if key not in _sums:
            sha = hashlib.sha256()
            with file.open("rb") as content:
                while part := content.read(2**20):
                    sha.update(part)
            _sums[key] = sha.hexdigest()
        return _sums[key]
    except OSError:
        return ""


def _epochs(folder: Path) -> int:
    """Complete epochs, as metrics.csv has them."""
    try:
        return len((folder / "metrics.csv").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return 0
