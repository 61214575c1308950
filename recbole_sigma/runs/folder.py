"""The directory of one run. A file in it is complete or missing: each is written to a temporary name, then renamed.

Nothing that is read can execute code: safetensors, JSON, YAML, and a training state under `weights_only`. Tensors
carry a digest, since neither format notices a changed byte.
"""

import contextlib
import errno
import io
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recbole_sigma.config.values import dump_settings
from recbole_sigma.errors import UserError, one_line
from recbole_sigma.runs import files

_DIGEST = "sha256"
_FORMAT = 1  # of state.pt; counts up when its content changes


class RunFolder:
    """`<checkpoint_dir>/<model>-<dataset>-<stamp>-<id>/`; its name is unique even if runs start at the same time."""

    def __init__(self, path: str | Path) -> None:
        """The directory that `create` made. Raises UserError for any other."""
        self.path = Path(path)
        self.weights = self.path / "model.safetensors"  # of the best epoch
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path}: not a run directory; one has a config.yaml")

    @classmethod
    def create(
        cls,
        checkpoint_dir: str | Path,
        model: str,
        dataset: str,
        settings: Mapping[str, Any],
        items: Sequence[str],
        item_info: Mapping[str, Any],
    ) -> "RunFolder":
        """Make the directory together with the files that a run needs to start. Raises UserError if that fails.

        `items`: the vocabulary, items.json. `item_info`: what data/item_info.py knows of them, item_info.json.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        while True:
            path = Path(checkpoint_dir) / f"{model}-{dataset}-{stamp}-{secrets.token_hex(3)}"
            partial = path.with_name(f".{path.name}.{os.getpid()}.part")
            try:
                partial.mkdir(parents=True)
                (partial / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
                (partial / "items.json").write_text(files.json_text(list(items)), encoding="utf-8")
                (partial / "item_info.json").write_text(files.json_text(dict(item_info)), encoding="utf-8")
                partial.rename(path)
                return cls(path)
            except BaseException as error:  # also a signal that ends the process
                shutil.rmtree(partial, ignore_errors=True)
                if not isinstance(error, OSError):
                    raise
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another run has this name
                    raise UserError(f"checkpoint_dir: cannot make the directory {path}: {error.strerror}") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock. Raises UserError if another process trains in the directory."""
        with files.locked(self.path, wait=False) as held:
            if not held:
                raise UserError(f"{self.path}: another process trains in this directory; wait for it, or stop it")
            yield

    def check_items(self, items: Sequence[str]) -> None:
        """Refuse data with other items than those that the run started with; `items` includes the padding item."""
        file = self.path / "items.json"
        saved = files.read_json(file, list)
        for index, (before, now) in enumerate(itertools.zip_longest(saved, items)):
            if before != now:
                counts = f"{len(saved) - 1} items, the data {len(items) - 1}"
                raise UserError(f"{file}: has {counts}; item {index} is {before!r}, in the data {now!r}")

    def check_data(self, setting: str, dataset: Any) -> None:
        """Refuse a run, named by `setting`, that learned from another file; unfinished and exported ones do not say."""
        file = self.path / "result.json"
        recorded = files.read_json(file, dict).get("dataset") if file.exists() else None
        if isinstance(recorded, dict) and recorded.get("sha256") != dataset.checksum():
            file_name = f"{dataset.dataset_name}.inter"
            raise UserError(f"{setting}: {self.path} learned from another {file_name}, perhaps what is tested here")

    def write_epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        """metrics.csv, a row per epoch."""
        files.write_text(self.path / "metrics.csv", files.csv_text(rows))

    def write_ranks(self, split: str, arrays: Mapping[str, np.ndarray]) -> None:
        """ranks-valid.npz or ranks-test.npz, without pickles."""

        def write(path: Path) -> None:
            with path.open("wb") as file:  # an open file, since savez would add .npz to a name
                np.savez_compressed(file, allow_pickle=False, **arrays)

        files.write_file(self.path / f"ranks-{split}.npz", write)

    def save_weights(self, state: Mapping[str, Tensor]) -> None:
        """model.safetensors"""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        metadata = {"format": "pt", _DIGEST: files.digest(dict(sorted(tensors.items())))}
        files.write_file(self.weights, lambda path: save_file(tensors, path, metadata=metadata))

    def load_weights(self) -> dict[str, Tensor]:
        """The best epoch's weights, on the CPU. Raises UserError for a file that is not as it was saved."""
        try:
            self.weights.open("rb").close()  # safe_open says of any error that there is no such file
            with safe_open(self.weights, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
                saved = (file.metadata() or {}).get(_DIGEST)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.weights}: cannot be read as safetensors: {one_line(error)}") from None
        if saved != files.digest(tensors):
            raise UserError(f"{self.weights}: damaged: its tensors are not those that were saved")
        return tensors

    def save_state(self, state: dict[str, Any]) -> None:
        """state.pt: nested plain values and tensors."""

        def write(path: Path) -> None:
            content = io.BytesIO()  # torch's writer aborts the process if Ctrl-C closes a file below it
            torch.save({"format": _FORMAT, "state": state, _DIGEST: files.digest(state)}, content)
            path.write_bytes(content.getbuffer())

        files.write_file(self.path / "state.pt", write)

    def load_state(self) -> dict[str, Any] | None:
        """The state after the last complete epoch, None before the first. Raises UserError for any other file."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            version, state, saved = content["format"], dict(content["state"]), content[_DIGEST]
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception:  # bytes of unknown origin: torch's readers raise almost anything
            raise UserError(f"{path}: not a training state: damaged, or it holds more than plain values") from None
        if version != _FORMAT:
            raise UserError(f"{path}: was written in format {version!r} by another version; this one reads {_FORMAT}")
        if saved != files.digest(state):
            raise UserError(f"{path}: damaged: its content is not what was saved")
        return state
