"""Those that benchmarks/gpu.py measures: a model with its data, its optimiser and its own trainer's epoch.

SIGMA             ours, through our loader; so for any of our models
released:SIGMA    the authors' design (released.py) through RecBole's data set and loader; or released:Mamba4Rec
recbole:SASRec    RecBole's class through RecBole's data set and loader; so for any of its sequential models
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import data_preparation as recbole_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed
from released import RELEASED, StandInMamba, mamba_ssm_block

import recbole_sigma  # noqa: F401  makes RecBole work on today's packages
from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.result import data_facts
from recbole_sigma.training.trainer import SequenceTrainer

OURS, RELEASED_AS, RECBOLE_AS = "", "released", "recbole"
FIELDS = {"inter": ["user_id", "item_id", "timestamp"]}  # what the released configurations read


class Data:
    """One data set through our loaders and, when first asked for, RecBole's. The rivals share theirs."""

    def __init__(self, dataset: str, settings: dict[str, Any]) -> None:
        self.dataset = dataset
        self.settings = {"load_col": FIELDS, **settings}
        self._recboles: tuple[Any, Any] | None = None

    def config(self, model: str | type, **settings: Any) -> Config:
        """The settings of `model` on this data."""
        return Config(model, self.dataset, settings={**self.settings, **settings})

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Statistics and checksum."""
        return data_facts(create_dataset(self.config("SIGMA")))

    def ours(self, config: Config) -> tuple[Any, Any]:
        """Our loaders of training and test."""
        train, _, test = data_preparation(config, create_dataset(config))
        return train, test

    def recboles(self, config: Config) -> tuple[Any, Any]:
        """RecBole's loaders of training and test, whose every sample is padded; made for the first who asks."""
        if self._recboles is None:
            train, _, test = recbole_preparation(config, SequentialDataset(config))
            self._recboles = train, test
        return self._recboles


class Contestant:
    """A model that is trained a step at a time, asked for scores, or trained for a whole epoch by its own trainer."""

    def __init__(self, name: str, data: Data, ratio: float | None = None) -> None:
        """`ratio` is `length_ratio`, of our models."""
        kind, _, model = name.rpartition(":")
        self.label = name if ratio is None else f"{name}, length_ratio {ratio:g}"
        self.ours, self.ratio = kind == OURS, ratio
        self.config, make = _settings_and_class(kind, model, data, ratio)
        self.loader, self.test_loader = (data.ours if self.ours else data.recboles)(self.config)
        self.device: torch.device = self.config["device"]
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.model = make(self.config, self.loader.dataset).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config["learning_rate"])
        self._batches = _forever(self.loader)

    def batch(self) -> Any:
        """The next batch, where the loader makes it."""
        return next(self._batches)

    def train(self) -> None:
        """One step: drawn, moved, scored, differentiated, applied. The loss is read, as both trainers do."""
        batch = self.batch().to(self.device)
        self.optimizer.zero_grad()
        loss = self.model.calculate_loss(batch)
        loss.item()
        loss.backward()
        self.optimizer.step()

    @cached_property
    def test_batch(self) -> Any:
        """One batch of test users, on the device."""
        return next(iter(self.test_loader))[0].to(self.device)

    @torch.no_grad()
    def infer(self) -> None:
        """Scores of all items for one batch of test users."""
        self.model.full_sort_predict(self.test_batch)

    def epoch(self) -> float:
        """Seconds of a whole epoch, data included, by the trainer that the model is trained with."""
        with _in_a_folder_of_its_own() as folder:
            trainer: Any
            if self.ours:
                made = RunFolder.create(folder, self.config.model, self.config.dataset, {}, [])
                trainer = SequenceTrainer(self.config, self.model, made)
            else:
                trainer = Trainer(self.config, self.model)
            synchronise(self.device)
            started = time.perf_counter()
            trainer._train_epoch(self.loader, 0)
            synchronise(self.device)
            return time.perf_counter() - started

    @property
    def n_parameters(self) -> int:
        """Trained numbers."""
        return sum(each.numel() for each in self.model.parameters())

    def held_bytes(self) -> int:
        """Of the model, its gradients and Adam's state."""
        moments = [each for state in self.optimizer.state.values() for each in state.values()]
        gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
        held = [*self.model.parameters(), *self.model.buffers(), *gradients, *moments]
        return sum(each.nbytes for each in held if torch.is_tensor(each) and each.device == self.device)


def _settings_and_class(kind: str, model: str, data: Data, ratio: float | None) -> tuple[Config, Any]:
    """The settings, and what makes the model of settings and data. Raises ValueError for a name that is none."""
    if kind == OURS:
        config = data.config(model, **({} if ratio is None else {"length_ratio": ratio}))
        return config, config.model_class
    if kind == RELEASED_AS and model in RELEASED:
        config = data.config(model)
        make_mamba = mamba_ssm_block if config["device"].type == "cuda" else StandInMamba
        return config, partial(RELEASED[model], make_mamba=make_mamba)
    if kind == RECBOLE_AS:
        found = _recbole_class(model)
        return data.config(found), found
    raise ValueError(f"{kind}:{model}: choose among released:{', released:'.join(RELEASED)}, recbole:MODEL or MODEL")


def _recbole_class(name: str) -> Any:
    return getattr(import_module(f"recbole.model.sequential_recommender.{name.lower()}"), name)


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock tells what it did."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _in_a_folder_of_its_own() -> Iterator[str]:
    """RecBole's trainer writes into the working directory and `checkpoint_dir`; neither is to be littered."""
    before = os.getcwd()  # noqa: PTH109 - for os.chdir
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)
