"""The folder of one run. A file in it is whole or not there: each is written under another name, then renamed.

What is read back is plain: safetensors, JSON, YAML, and a training state under `weights_only`. Tensors carry a digest,
since neither format notices a changed byte.
"""

import errno
import fcntl
import os
import pickle
import secrets
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recbole_sigma.config.values import dump_settings
from recbole_sigma.errors import UserError, one_line
from recbole_sigma.runs.files import csv_text, digest, json_text, read_json, write_file, write_text

_DIGEST = "sha256"
_FORMAT = 1  # of state.pt; counts up when its content changes
# What torch's reader, its zip reader and its restricted unpickler raise for bytes that are none of theirs.
_NOT_A_STATE = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError,
    AttributeError, OverflowError, MemoryError, AssertionError,
)  # fmt: skip


class RunFolder:
    """`<checkpoint_dir>/<model>-<dataset>-<stamp>-<id>/`; nobody else's, however many runs start at once."""

    def __init__(self, path: str | Path, lock: bool = True) -> None:
        """A folder that `create` made, to go on with; with `lock`, alone.

        Raises UserError if it is none, or another process is at it.
        """
        self.path = Path(path)
        self._lock: int | None = None
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path}: not the folder of a run; one has a config.yaml")
        if lock:
            self._take_lock()

    def _take_lock(self) -> None:
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            self.close()
            raise UserError(f"{self.path}: another process trains in this folder; wait for it, or end it") from None
        except OSError:
            pass  # a file system without locks

    @classmethod
    def create(
        cls, checkpoint_dir: str | Path, model: str, dataset: str, settings: Mapping[str, Any], items: list[str]
    ) -> "RunFolder":
        """Make the folder, at once with what a run needs to begin. Raises UserError if that is not possible."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        while True:
            path = Path(checkpoint_dir) / f"{model}-{dataset}-{stamp}-{secrets.token_hex(3)}"
            partial = path.with_name(f".{path.name}.{os.getpid()}.part")
            try:
                partial.mkdir(parents=True)
                (partial / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
                (partial / "items.json").write_text(json_text(items), encoding="utf-8")
                partial.rename(path)
                return cls(path)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another run's, of the same instant
                    raise UserError(f"checkpoint_dir: cannot make the folder {path}: {error.strerror}") from None

    def close(self) -> None:
        """Let other processes at the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_text(self, name: str, text: str) -> None:
        """A text file in UTF-8."""

        write_text(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file; NaN is an error in it."""
        self.write_text(name, json_text(content))

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """A YAML file of plain values."""
        self.write_text(name, dump_settings(content))

    def read_json(self, name: str, kind: type) -> Any:
        """What `write_json` wrote, a `kind`. Raises UserError for anything else."""
        return read_json(self.path / name, kind)

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """A compressed .npz file without pickles."""

        def write(path: Path) -> None:
            with path.open("wb") as file:  # a file, since savez adds .npz to a name
                np.savez_compressed(file, allow_pickle=False, **arrays)

        write_file(self.path / name, write)

    def save_weights(self, state: Mapping[str, Tensor]) -> None:
        """model.safetensors"""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        metadata = {"format": "pt", _DIGEST: digest(dict(sorted(tensors.items())))}
        write_file(self.weights, lambda path: save_file(tensors, path, metadata=metadata))

    def load_weights(self) -> dict[str, Tensor]:
        """The weights of the best epoch so far, on the CPU. Raises UserError for a file that is not as it was saved."""
        try:
            with safe_open(self.weights, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
                saved = (file.metadata() or {}).get(_DIGEST)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.weights}: cannot be read as safetensors: {one_line(error)}") from None
        if saved != digest(tensors):
            raise UserError(f"{self.weights}: damaged: its tensors are not those that were saved")
        return tensors

    @property
    def weights(self) -> Path:
        """The file of the best epoch's weights."""
        return self.path / "model.safetensors"

    def save_state(self, state: dict[str, Any]) -> None:
        """state.pt: nested plain values and tensors."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                try:
                    torch.save({"format": _FORMAT, "state": state, _DIGEST: digest(state)}, file)
                except RuntimeError as error:  # torch's writer, on top of the file's own OSError
                    raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

        write_file(self.path / "state.pt", write)

    def load_state(self) -> dict[str, Any] | None:
        """The last complete epoch's state, or None before the first. Raises UserError for a file that is none."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except _NOT_A_STATE:
            raise UserError(f"{path}: not a training state: it is damaged, or holds more than plain values") from None
        if not isinstance(content, dict) or not isinstance(content.get("state"), dict):
            raise UserError(f"{path}: not a training state of recbole-sigma")
        if content.get("format") != _FORMAT:
            raise UserError(f"{path}: format {content.get('format')!r} is another version's; this one reads {_FORMAT}")
        if content.get(_DIGEST) != digest(content["state"]):
            raise UserError(f"{path}: damaged: its content is not what was saved")
        state: dict[str, Any] = content["state"]
        return state

    def write_epochs(self, epochs: list[dict[str, Any]]) -> None:
        """metrics.csv, a row an epoch."""
        self.write_text("metrics.csv", csv_text(epochs))
