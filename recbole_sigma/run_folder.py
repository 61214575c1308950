"""The folder of one run. A file in it is whole or not there: each is written under another name, then renamed."""

import csv
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_sigma.errors import UserError


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then rename it: whoever reads `path` sees the old or the new one.

    Raises UserError when the disk refuses; the old file is untouched then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class RunFolder:
    """`<checkpoint_dir>/<model>-<dataset>-<stamp>-<id>/`; nobody else's, however many runs start at once."""

    def __init__(self, checkpoint_dir: str | Path, model: str, dataset: str) -> None:
        """Make the folder. Raises UserError if that is not possible."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.path = Path(checkpoint_dir) / f"{model}-{dataset}-{stamp}-{secrets.token_hex(3)}"
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"checkpoint_dir: cannot make the folder {self.path}: {error.strerror}") from None
        self._epochs: list[Mapping[str, Any]] = []

    def write_text(self, name: str, text: str) -> None:
        """A text file in UTF-8."""

        def write(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        write_whole(self.path / name, write)

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file; NaN is an error in it."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def write_yaml(self, name: str, content: Any) -> None:
        """A YAML file of plain values."""
        self.write_text(name, yaml.safe_dump(content, sort_keys=True))

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """A compressed .npz file without pickles."""

        def write(path: Path) -> None:
            with path.open("wb") as file:  # a file, since savez adds .npz to a name
                np.savez_compressed(file, allow_pickle=False, **arrays)

        write_whole(self.path / name, write)

    def save_weights(self, state: Mapping[str, Tensor]) -> None:
        """model.safetensors"""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        write_whole(self.weights, lambda path: save_file(tensors, path))

    def load_weights(self) -> dict[str, Tensor]:
        """The weights of the best epoch so far, on the CPU."""
        return load_file(self.weights)

    @property
    def weights(self) -> Path:
        """The file of the best epoch's weights."""
        return self.path / "model.safetensors"

    def add_epoch(self, row: Mapping[str, Any]) -> None:
        """One more row of metrics.csv."""
        self._epochs.append(row)
        columns = list(dict.fromkeys(name for each in self._epochs for name in each))
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self._epochs)
        self.write_text("metrics.csv", text.getvalue())
