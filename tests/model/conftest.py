"""Short runs for the tests of devices, and batches in several chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import run
from recbole_sigma.model import chunks
from tests.helpers.on_cuda import GPU
from tests.helpers.runs import OUR_SIZE, SIZES, TINY


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small batches of tests are encoded in several chunks, as large ones are."""
    monkeypatch.setattr(chunks, "SPARE", 0)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """`trained(model, use_gpu=..., callbacks=..., setting=value)` -> the directory of a short run on ml-100k."""

    def train(model: str, callbacks: Any = (), **settings: Any) -> Path:
        given = {**TINY, **SIZES.get(model, OUR_SIZE), "use_gpu": GPU, "checkpoint_dir": str(tmp_path / "saved")}
        return run(model, "ml-100k", settings={**given, **settings}, callbacks=callbacks).folder

    return train
