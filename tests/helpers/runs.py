"""Small runs for tests: their settings, and how to interrupt one."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_sigma.training.checkpoint import Checkpoint
from tests.helpers.models import OURS

ON_CPU = {"use_gpu": False, "show_progress": False, "threads": 1}
SMALL = {**ON_CPU, "MAX_ITEM_LIST_LENGTH": 10, "user_inter_num_interval": "[0,40]"}
FEWER_USERS = {"user_inter_num_interval": "[0,25]"}
TINY = {**ON_CPU, **FEWER_USERS, "MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 16, "epochs": 3, "state": "ERROR"}
OUR_SIZE = {"hidden_size": 16, "d_state": 4}
SIZES = {name: {"hidden_size": 16} for name in ("EMARec", "SASRec", "GRU4Rec")}
SIZES |= {"LinRec": {"hidden_size": 32}}  # at 16, its dropout of 0.5 zeroes complete items, and the gradient overflows
SIZES |= {name: {"hidden_size": 16, **FEWER_USERS} for name in ("BERT4Rec", "FEARec")}
NINE = (*OURS, "GRU4Rec", "SASRec", "BERT4Rec", "FEARec")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def stopping(epochs: int) -> Callable[..., None]:
    """`Checkpoint.on_epoch_end` with Ctrl-C after as many epochs, or before the first one's state is written."""
    on_epoch_end = Checkpoint.on_epoch_end

    def saved(self: Checkpoint, row: Any) -> None:
        if epochs:
            on_epoch_end(self, row)
        if row["epoch"] + 1 >= epochs:
            raise KeyboardInterrupt

    return saved


def options(**settings: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def train_command(**settings: Any) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "recbole_sigma.cli", "train", *options(**settings)]


class Malicious:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))
