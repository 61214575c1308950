"""Training and evaluation: RecBole's Trainer, with ranks instead of top-k lists and nothing pickled."""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.trainer.trainer import AbstractTrainer, Trainer
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.ranks import Ranks, metrics_of_ranks, target_ranks
from recbole_sigma.memory import give_back_excess
from recbole_sigma.run_folder import RunFolder

SCORES_TOGETHER = 2**27  # scores of a part of a batch, 512 MB in float32: with many items a batch is scored in parts
RANK_ROWS = 256  # rows whose ranks are counted together
REMEDY = "try a lower learning_rate, or clip_grad_norm={max_norm: 1}"

logger = logging.getLogger(__name__)


@dataclass
class BestEpoch:
    """Early stopping on full-precision scores (RecBole: 4 decimals); of equal scores the first is the best."""

    patience: int
    bigger_is_better: bool = True
    epoch: int = -1
    score: float = math.nan
    waited: int = 0

    def update(self, epoch: int, score: float) -> bool:
        """Note one epoch's validation score; True if it is the best so far."""
        sign = 1 if self.bigger_is_better else -1
        if self.epoch >= 0 and sign * score <= sign * self.score:
            self.waited += 1
            return False
        self.epoch, self.score, self.waited = epoch, score, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out: more evaluations in vain than `patience`, as RecBole counts."""
        return self.waited > self.patience


class SequenceTrainer(Trainer):
    """RecBole's optimisers and batch evaluation; the loop, the ranks and the files are ours.

    Writes model.safetensors, metrics.csv and TensorBoard events into the run's folder.
    """

    def __init__(self, config: Any, model: torch.nn.Module, folder: RunFolder) -> None:
        AbstractTrainer.__init__(self, config, model)  # Trainer's own opens files in the working directory
        self.folder = folder
        self.device = config["device"]
        self.learner, self.learning_rate = config["learner"], config["learning_rate"]
        self.weight_decay = config["weight_decay"]
        self.logger = logger
        self.optimizer = self._build_optimizer()
        self.epochs, self.eval_step = config["epochs"], max(config["eval_step"], 1)
        self.topk = list(config["topk"])
        self.valid_metric = config["valid_metric"].lower()
        self.best = BestEpoch(config["stopping_step"], config["valid_metric_bigger"])
        self.show_progress = config["show_progress"]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config["enable_scaler"])
        self.seconds: dict[str, list[float]] = {"train": [], "eval": []}
        self.samples = 0

    def fit(self, train_data: Any, valid_data: Any) -> BestEpoch:
        """Train until validation stops improving. The best epoch's weights end up in the model and in the folder."""
        with SummaryWriter(str(self.folder.path)) as events:
            for epoch in range(self.epochs):
                row = {"epoch": epoch, **self._one_epoch(train_data, epoch)}
                if (epoch + 1) % self.eval_step == 0 or epoch + 1 == self.epochs:
                    row |= self._validate(valid_data, epoch)
                self.folder.add_epoch(row)
                for name, value in row.items():
                    events.add_scalar(name, value, epoch)
                _log_epoch(row, is_best=self.best.epoch == epoch)
                if self.best.exhausted:
                    logger.info("no better %s for %d evaluations", self.valid_metric, self.best.waited)
                    break
        self.model.load_state_dict(self.folder.load_weights())
        return self.best

    def _one_epoch(self, train_data: Any, epoch: int) -> dict[str, float]:
        started = time.perf_counter()
        loss = self._train_epoch(train_data, epoch)
        self.seconds["train"].append(time.perf_counter() - started)
        return {"loss": loss, "train_seconds": self.seconds["train"][-1]}

    def _validate(self, valid_data: Any, epoch: int) -> dict[str, float]:
        started = time.perf_counter()
        metrics = metrics_of_ranks(self.ranks(valid_data, f"validation, epoch {epoch}").rank, self.topk)
        self.seconds["eval"].append(time.perf_counter() - started)
        if self.best.update(epoch, metrics[self.valid_metric]):
            self.folder.save_weights(self.model.state_dict())
        return {**metrics, "eval_seconds": self.seconds["eval"][-1]}

    def _train_epoch(self, train_data: Any, epoch_idx: int, **_: Any) -> float:
        """Mean loss of one epoch."""
        self.model.train()
        total, samples = 0.0, 0
        for number, batch in enumerate(self._progress(train_data, f"epoch {epoch_idx}")):
            batch = batch.to(self.device)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, enabled=bool(self.config["enable_amp"])):
                losses = self.model.calculate_loss(batch)
            loss: Any = sum(losses) if isinstance(losses, tuple) else losses
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f"the loss is {value} in epoch {epoch_idx}, batch {number}: {REMEDY}")
            self.scaler.scale(loss).backward()
            if self.config["clip_grad_norm"]:
                self.scaler.unscale_(self.optimizer)
                clip_grad_norm_(self.model.parameters(), **self.config["clip_grad_norm"])
            self.scaler.step(self.optimizer)
            self.scaler.update()
            targets = int(torch.count_nonzero(batch[self.model.POS_ITEM_ID]))
            total, samples = total + value * targets, samples + targets
            give_back_excess()
        self.samples = samples
        return total / samples

    @torch.no_grad()
    def ranks(self, eval_data: Any, what: str) -> Ranks:
        """Rank of every evaluated user's target. Raises UserError when a score is NaN or infinite."""
        self.model.eval()
        dataset = eval_data.dataset
        users, targets = [], []
        ranks: list[torch.Tensor] = []
        for number, (batch, _, _, positive) in enumerate(self._progress(eval_data, what.split(",")[0])):
            try:
                ranks.extend(self._batch_ranks(batch, positive, dataset.item_num))
            except FloatingPointError as error:
                raise UserError(f"{what}, batch {number}: {error}: {REMEDY}") from None
            users.append(batch[dataset.uid_field].cpu())
            targets.append(positive.cpu())
        return Ranks(
            user=dataset.field2id_token[dataset.uid_field][torch.cat(users).numpy()].astype(str),
            target=dataset.field2id_token[dataset.iid_field][torch.cat(targets).numpy()].astype(str),
            history_length=dataset.history_lengths(np.arange(len(dataset))),
            rank=torch.cat(ranks).numpy(),
        )

    def _batch_ranks(self, batch: Any, positive: torch.Tensor, n_items: int) -> Iterator[torch.Tensor]:
        """Ranks of a batch's targets, part by part. Raises FloatingPointError when a score is NaN or infinite."""
        step = max(SCORES_TOGETHER // n_items, 1)
        for start in range(0, len(batch), step):
            rows = slice(start, start + step)
            part = batch[rows].to(self.device)
            scores = self.model.full_sort_predict(part).view(len(part), n_items)
            targets = positive[rows].to(self.device)
            for each in zip(scores.split(RANK_ROWS), targets.split(RANK_ROWS), strict=True):
                yield target_ranks(*each)

    def _progress(self, batches: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(batches, desc=f"{what:>12}", ncols=100, leave=False, disable=not self.show_progress)


def _log_epoch(row: dict[str, float], is_best: bool) -> None:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if "@" in name)
    seconds = row["train_seconds"] + row.get("eval_seconds", 0.0)
    logger.info("epoch %3d  loss %.4f  %s  %.1f s%s", row["epoch"], row["loss"], metrics, seconds, "  best" * is_best)
