"""Training and evaluation: RecBole's Trainer, with ranks instead of top-k lists and nothing pickled."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from recbole.trainer.trainer import AbstractTrainer, Trainer
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.metrics import metrics_of_ranks
from recbole_sigma.evaluation.ranks import Ranks, target_ranks
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.training.allocator import give_back_excess
from recbole_sigma.training.distributed import ALONE, Group

SCORES_TOGETHER = 2**27  # scores of a part of a batch, 512 MB in float32: with many items a batch is scored in parts
RANK_ROWS = 256  # rows whose ranks are counted together
SMALLEST_SCALE = 2.0**-14  # of a GradScaler: it halves at each overflow, and would end at 0 without a word
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

    def __init__(self, config: Any, model: torch.nn.Module, folder: RunFolder, group: Group = ALONE) -> None:
        AbstractTrainer.__init__(self, config, model)  # Trainer's own opens files in the working directory
        self.folder, self.group = folder, group
        self.device = config["device"]
        self.learner, self.learning_rate = config["learner"], config["learning_rate"]
        self.weight_decay = config["weight_decay"]
        self.logger = logger
        self.optimizer = self._build_optimizer()
        self.epochs, self.eval_step = config["epochs"], max(config["eval_step"], 1)
        self.topk = list(config["topk"])
        self.valid_metric = config["valid_metric"].lower()
        self.best = BestEpoch(config["stopping_step"], config["valid_metric_bigger"])
        self.show_progress = config["show_progress"] and group.first
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config["enable_scaler"])
        self.rows: list[dict[str, float]] = []  # of metrics.csv, one an epoch
        self.samples = 0

    def fit(self, train_data: Any, valid_data: Any, save: Callable[[], None] = lambda: None) -> BestEpoch:
        """Train, after the epochs that `rows` has, until validation stops improving.

        `save` is called after each epoch. The best epoch's weights end up in the model and in the folder.
        """
        with self._events() as events:
            for epoch in range(len(self.rows), self.epochs):
                if self.best.exhausted:
                    break
                row = {"epoch": epoch, **self._one_epoch(train_data, epoch)}
                if (epoch + 1) % self.eval_step == 0 or epoch + 1 == self.epochs:
                    row |= self._validate(valid_data, epoch)
                self.rows.append(row)
                save()
                events(row)
                _log_epoch(row, is_best=self.best.epoch == epoch)
        if self.best.exhausted:
            logger.info("no better %s for %d evaluations", self.valid_metric, self.best.waited)
        if self.group.first:
            self.model.load_state_dict(self.folder.load_weights())
        self.group.copy_from_first(self.model)
        return self.best

    def resume_checkpoint(self, resume_file: Any) -> NoReturn:
        """Refused: RecBole's checkpoints are pickles, which can execute code."""
        raise UserError(f"{resume_file}: not read, since RecBole's checkpoints are pickles; see recbole_sigma.resume")

    @contextmanager
    def _events(self) -> Iterator[Callable[[dict[str, float]], None]]:
        """What writes a row as TensorBoard events; those of an epoch that was not completed are hidden."""
        if not self.group.first:
            yield lambda row: None
            return
        with SummaryWriter(str(self.folder.path), purge_step=len(self.rows)) as writer:

            def write(row: dict[str, float]) -> None:
                for name, value in row.items():
                    writer.add_scalar(name, value, int(row["epoch"]))

            yield write

    def _one_epoch(self, train_data: Any, epoch: int) -> dict[str, float]:
        started = time.perf_counter()
        loss = self._train_epoch(train_data, epoch)
        return {"loss": loss, "train_seconds": time.perf_counter() - started}

    def _validate(self, valid_data: Any, epoch: int) -> dict[str, float]:
        started = time.perf_counter()
        metrics = metrics_of_ranks(self.ranks(valid_data, f"validation, epoch {epoch}").rank, self.topk)
        self.best.update(epoch, metrics[self.valid_metric])
        return {**metrics, "eval_seconds": time.perf_counter() - started}

    def _train_epoch(self, train_data: Any, epoch_idx: int, **_: Any) -> float:
        """Mean loss of one epoch."""
        self.model.train()
        total, samples = 0.0, 0
        for number, batch in enumerate(self._progress(train_data, f"epoch {epoch_idx}")):
            loss, targets = self._step(batch, f"in epoch {epoch_idx}, batch {number}")
            total, samples = total + loss * targets, samples + targets
            give_back_excess()
        self.samples = samples
        return total / samples

    def _step(self, batch: Any, where: str) -> tuple[float, int]:
        """One step of the optimiser: the batch's mean loss, and how many targets it is the mean of.

        `batch` is None for a process of several that has none of its rows. Raises UserError where the loss or the
        gradient is NaN or infinite; the weights are as before then.
        """
        self.optimizer.zero_grad()
        value, targets = 0.0, 0
        if batch is not None:
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, enabled=bool(self.config["enable_amp"])):
                losses = self.model.calculate_loss(batch)
            loss: Any = sum(losses) if isinstance(losses, tuple) else losses
            value, targets = loss.item(), int(torch.count_nonzero(batch[self.model.POS_ITEM_ID]))
            self.scaler.scale(loss).backward()
        value, targets = self.group.sum_gradients(self.model.parameters(), value, targets)
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} {where}: {REMEDY}")
        self.scaler.unscale_(self.optimizer)
        self._check_gradients(where)
        if self.config["clip_grad_norm"]:
            clip_grad_norm_(self.model.parameters(), **self.config["clip_grad_norm"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value, targets

    def _check_gradients(self, where: str) -> None:
        """A GradScaler leaves out steps that overflow; anything else that is not finite is an error."""
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < SMALLEST_SCALE:
                raise UserError(f"the gradient overflows at every scale {where}: {REMEDY}, or enable_scaler: false")
            return
        norms = [torch.linalg.vector_norm(each.grad) for each in self.model.parameters() if each.grad is not None]
        if not torch.stack(norms).isfinite().all():
            names = (name for name, each in self.model.named_parameters() if each.grad is not None)
            worst = next(name for name, norm in zip(names, norms, strict=True) if not norm.isfinite())
            raise UserError(f"the gradient of {worst} is NaN or infinite {where}: {REMEDY}")

    @torch.no_grad()
    def ranks(self, eval_data: Any, what: str) -> Ranks:
        """Rank of every evaluated user's target. Raises UserError when a score is NaN or infinite."""
        self.model.eval()
        dataset = eval_data.dataset
        batches: list[np.ndarray] = []
        for number, batch in enumerate(self._progress(eval_data, what.split(",")[0])):
            try:
                batches.append(self._batch_ranks(batch, dataset.item_num))
            except FloatingPointError as error:
                raise UserError(f"{what}, batch {number}: {error}: {REMEDY}") from None
        shares = self.group.gather(batches)  # of each batch, every process has ranked its share
        samples = dataset.inter_feat
        return Ranks(
            user=dataset.field2id_token[dataset.uid_field][samples[dataset.uid_field].numpy()].astype(str),
            target=dataset.field2id_token[dataset.iid_field][samples[dataset.iid_field].numpy()].astype(str),
            history_length=dataset.history_lengths(np.arange(len(dataset))),
            rank=np.concatenate([part for batch in zip(*shares, strict=True) for part in batch]),
        )

    def _batch_ranks(self, batch: Any, n_items: int) -> np.ndarray:
        """Ranks (n,) of a batch's targets, part by part. Raises FloatingPointError when a score is NaN or infinite."""
        if batch is None:
            return np.empty(0)
        interaction, _, _, positive = batch
        step = max(SCORES_TOGETHER // n_items, 1)
        ranks = []
        for start in range(0, len(interaction), step):
            rows = slice(start, start + step)
            part = interaction[rows].to(self.device)
            scores = self.model.full_sort_predict(part).view(len(part), n_items)
            targets = positive[rows].to(self.device)
            for each in zip(scores.split(RANK_ROWS), targets.split(RANK_ROWS), strict=True):
                ranks.append(target_ranks(*each))
        return torch.cat(ranks).numpy()

    def _progress(self, batches: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(batches, desc=f"{what:>12}", ncols=100, leave=False, disable=not self.show_progress)


def _log_epoch(row: dict[str, float], is_best: bool) -> None:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if "@" in name)
    seconds = row["train_seconds"] + row.get("eval_seconds", 0.0)
    logger.info("epoch %3d  loss %.4f  %s  %.1f s%s", row["epoch"], row["loss"], metrics, seconds, "  best" * is_best)
