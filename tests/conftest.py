"""Tiny data sets, written where a test can see every line."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.model.sequential_recommender.gru4rec import GRU4Rec

from recbole_sigma import cli
from recbole_sigma.config.config import Config
from recbole_sigma.data import SequenceDataset, create_dataset

HEADER = ("user_id:token", "item_id:token", "timestamp:float")


class AnyLength(GRU4Rec):
    """A model that says of itself that it takes batches of any length, as ours do."""

    accepts_any_length = True


@pytest.fixture(autouse=True)
def logger_as_imported() -> None:
    """A run, also one of a fixture of the module, gives our logger a handler, and `caplog` would see nothing."""
    ours = logging.getLogger("recbole_sigma")
    ours.handlers.clear()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)


@pytest.fixture
def write_inter(tmp_path: Path) -> Callable[..., Path]:
    """`write_inter(rows, header=...)` -> the file `tiny.inter` in a data set folder `tiny` below `tmp_path`."""

    def write(rows: Iterable[Iterable[Any]], header: Iterable[str] = HEADER) -> Path:
        folder = tmp_path / "tiny"
        folder.mkdir(exist_ok=True)
        lines = ["\t".join(map(str, row)) for row in (header, *rows)]
        (folder / "tiny.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder / "tiny.inter"

    return write


@pytest.fixture
def read_tiny(tmp_path: Path) -> Callable[..., SequenceDataset]:
    """`read_tiny(setting=value, ...)` -> the data set that `write_inter` wrote, for a model of any length."""

    def read(model: type = AnyLength, **settings: Any) -> SequenceDataset:
        return create_dataset(
            Config(model, "tiny", settings={"data_path": str(tmp_path), "use_gpu": False, **settings})
        )

    return read


@pytest.fixture
def sample_config() -> Callable[..., Config]:
    """`sample_config(model, setting=value, ...)` -> a Config for dataset/sample, 15 interactions of 5 users."""

    def make(model: type | str = GRU4Rec, **settings: Any) -> Config:
        folder = Path(__file__).parents[1] / "dataset"
        return Config(model, "sample", settings={"data_path": str(folder), "use_gpu": False, **settings})

    return make


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(argument, ..., names=[text, ...])` -> the one line with which `recbole-sigma` ends, with status 2."""

    def line(*arguments: str, names: Iterable[str] = ()) -> str:
        assert cli.main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("recbole-sigma: error: ") and shown.err.count("\n") == 1 and len(shown.err) < 1000
        assert shown.out == "" and all(each in shown.err for each in names), shown.err
        return shown.err

    return line


@pytest.fixture
def full_precision() -> Iterator[None]:
    """Float32 is float32 on CUDA: TF32 is off."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in switches]
    for each in switches:
        each.allow_tf32 = False
    yield
    for each, kept in zip(switches, before, strict=True):
        each.allow_tf32 = kept
