"""The models that epoch.py compares, each with its data, its optimiser and its own trainer.

SIGMA              one of our models, with our loader and `train_mode: prefix`
RecMamba:sequence  the same with `train_mode: sequence`
released:SIGMA     the design that its authors released (released.py), with RecBole's data set and loader
recbole:SASRec     RecBole's class, with RecBole's data set and loader
"""

import contextlib
import json
import tempfile
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import data_preparation as recbole_preparation
from recbole.trainer import Trainer
from recbole.utils import init_seed
from released import RELEASED
from torch.utils.benchmark import timer

from recbole_sigma import run
from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.training.optimizer import make_optimizer

FIELDS = {"inter": ["user_id", "item_id", "timestamp"]}  # what the released configurations read


class Data:
    """One data set, through our loaders and through RecBole's, which all rivals share."""

    def __init__(self, dataset: str, settings: Mapping[str, Any]) -> None:
        self.dataset = dataset
        data_path = str(Path(settings["data_path"]).resolve())  # trainers run in another directory
        self.settings = {"load_col": FIELDS, **settings, "data_path": data_path}
        self._recboles: tuple[Any, Any] | None = None

    def config(self, model: str | type, **settings: Any) -> Config:
        """The settings of a model on this data."""
        return Config(model, self.dataset, settings={**self.settings, **settings})

    def loaders(self, config: Config, ours: bool) -> tuple[Any, Any]:
        """Loaders of training and test: ours, or RecBole's, in which every history is padded."""
        if ours:
            train, _, test = data_preparation(config, create_dataset(config))
            return train, test
        if self._recboles is None:
            train, _, test = recbole_preparation(config, SequentialDataset(config))
            self._recboles = train, test
        return self._recboles


class Contestant:
    """A model that can be trained for some steps, asked for scores, or trained for an epoch by its own trainer."""

    def __init__(self, name: str, data: Data, **settings: Any) -> None:
        """Build a model by its name, see above.

        Args:
            name: `MODEL`, `MODEL:sequence`, `released:MODEL` or `recbole:MODEL`.
            data: what it is trained on.
            settings: numbers, of this contestant alone; they are part of its label.

        Raises:
            ValueError: for an unknown rival.
        """
        origin, model = name.split(":", 1) if name.startswith(("released:", "recbole:")) else ("", name)
        model, _, mode = model.partition(":")
        shown = [f"{key} {value:g}" for key, value in settings.items()]
        settings |= {} if origin else {"train_mode": mode or "prefix"}
        self.label, self.ours = ", ".join([name, *shown]), not origin
        self.settings = {**data.settings, **settings}
        configured: Any = model
        if origin == "recbole":
            configured = getattr(import_module(f"recbole.model.sequential_recommender.{model.lower()}"), model)
        elif origin and model not in RELEASED:
            raise ValueError(f"{name}: choose among released:{', released:'.join(RELEASED)}, recbole:MODEL and MODEL")
        self.config = data.config(configured, **settings)
        build = RELEASED[model] if origin == "released" else self.config.model_class
        self.device: torch.device = self.config["device"]
        self.loader, self.test_loader = data.loaders(self.config, self.ours)
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.model = build(self.config, self.loader.dataset).to(self.device)
        adam = torch.optim.Adam(self.model.parameters(), lr=self.config["learning_rate"])
        self.optimizer = make_optimizer(self.config, self.model) if self.ours else adam
        self.n_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.batches = chain.from_iterable(repeat(self.loader))  # without end, as the loader makes them

    def train(self, steps: int = 1) -> None:
        """Training steps: draw a batch, move it to the device, loss, gradient, Adam; reads the loss, as trainers do."""
        self.model.train()
        for _ in range(steps):
            batch = next(self.batches).to(self.device)
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
    def infer(self, times: int = 1) -> None:
        """Scores of all items for one batch of test users, that many times."""
        self.model.eval()
        for _ in range(times):
            self.model.full_sort_predict(self.test_batch)

    def epoch(self) -> float:
        """Seconds of a whole epoch, data included, by the trainer of the model: a new run of ours, or RecBole's."""
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):  # RecBole's trainer writes here
            if self.ours:
                settings = {**self.settings, "epochs": 1, "checkpoint_dir": directory, "state": "ERROR"}
                folder = run(self.config.model, self.config.dataset, settings=settings, test=False).folder
                return json.loads((folder / "result.json").read_text())["seconds_per_epoch"]
            trainer = Trainer(self.config, self.model)
            trainer.epochs = 1
            started = timer()
            trainer.fit(self.loader, saved=False, verbose=False)
            return timer() - started

    def held_bytes(self) -> int:
        """Memory of the model, its gradients and the state of Adam, on its device."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        held = [*self.model.parameters(), *self.model.buffers(), *gradients, *moments]
        return sum(value.nbytes for value in held if torch.is_tensor(value) and value.device == self.device)
