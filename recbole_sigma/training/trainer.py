"""Training and evaluation of one model: the loop over epochs, early stopping, and ranks instead of top-k lists."""

import logging
import math
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.metrics import LIST_METRICS, METRICS, metrics_of_lists, metrics_of_ranks
from recbole_sigma.evaluation.ranks import Ranks, masked_ranks, target_ranks, top_items
from recbole_sigma.training.allocator import return_excess_memory
from recbole_sigma.training.callbacks import Callback
from recbole_sigma.training.distributed import ALONE, Group
from recbole_sigma.training.optimizer import Schedule, WeightAverage, make_optimizer

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SCORES_TOGETHER = 2**27  # scores held at once, 512 MB in float32: with many items a batch is scored in slices
RANK_ROWS = 256  # rows whose ranks are counted together
SMALLEST_SCALE = 2.0**-14  # of a GradScaler, which halves its scale at each overflow and would end at 0 silently
REMEDY = (
    "try a lower learning_rate, clip_grad_norm={max_norm: 1}, less dropout, or a larger hidden_size if it is below 32"
)

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
        """Record one epoch's validation score; True if it is the best so far."""
        sign = 1 if self.bigger_is_better else -1
        if self.epoch >= 0 and sign * score <= sign * self.score:
            self.waited += 1
            return False
        self.epoch, self.score, self.waited = epoch, score, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether more than `patience` evaluations in a row brought no improvement, as RecBole counts."""
        return self.waited > self.patience


class SequenceTrainer:
    """Trains a model, validates it after each epoch, and ends with the weights of the best epoch."""

    def __init__(self, config: Any, model: torch.nn.Module, group: Group = ALONE) -> None:
        self.model: Any = model
        self.group = group
        self.device: torch.device = config["device"]
        self.fits_at_once = getattr(model, "fits_at_once", False)  # has no gradient (model/fitted.py)
        self.optimizer: Any = make_optimizer(config, model)
        self.schedule = Schedule(config)
        decay = 0 if self.fits_at_once else config["weight_average"]
        self.average = WeightAverage(model, decay) if decay else None
        self.epochs, self.eval_step = 1 if self.fits_at_once else config["epochs"], config["eval_step"]
        self.topk = list(config["topk"])
        names = list(dict.fromkeys((*METRICS, *map(str.lower, config["metrics"]))))
        self.list_metrics = [name for name in names if name in LIST_METRICS]
        self.rank_metrics = [name for name in names if name not in LIST_METRICS]
        self.tail_ratio = config["tail_ratio"]
        self.mask_seen = config["mask_seen"]
        self.valid_metric = config["valid_metric"].lower()
        self.autocast = bool(config["enable_amp"])
        self.clip_grad_norm = config["clip_grad_norm"]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config["enable_scaler"])
        self.show_progress = config["show_progress"] and group.first
        self.best = BestEpoch(config["stopping_step"], config["valid_metric_bigger"])
        self.best_weights: dict[str, Tensor] = {}  # on the CPU; empty before the first evaluation
        self.rows: list[dict[str, float]] = []  # of metrics.csv, one per epoch
        self.samples = 0  # of an epoch

    def fit(self, train_data: Any, valid_data: Any, callbacks: Sequence[Callback] = ()) -> BestEpoch:
        """Train, after the epochs in `rows`, until validation stops improving; the model gets the best weights.

        Without a validation sample all epochs are trained, and the last one counts as the best.
        """
        if not len(valid_data.dataset) and not self.fits_at_once:
            logger.warning("there is no validation split: all %d epochs are trained, the last one counts", self.epochs)
        for epoch in range(len(self.rows), self.epochs):
            if self.best.exhausted:
                break
            started = time.perf_counter()
            row = {"epoch": epoch, "loss": self._train_epoch(train_data, epoch)}
            row["train_seconds"] = time.perf_counter() - started
            if (epoch + 1) % self.eval_step == 0 or epoch + 1 == self.epochs:
                with self.average.applied() if self.average else nullcontext():
                    row |= self._validate(valid_data, epoch)
            self.rows.append(row)
            for callback in callbacks:
                callback.on_epoch_end(row)
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if "@" in name)
            seconds, mark = row["train_seconds"] + row.get("eval_seconds", 0.0), "  best" * (self.best.epoch == epoch)
            logger.info("epoch %3d  loss %.4f  %s  %.1f s%s", epoch, row["loss"], metrics, seconds, mark)
        if "eval_seconds" not in self.rows[-1] and not self.best.exhausted:  # resumed with as many epochs as it has
            with self.average.applied() if self.average else nullcontext():
                self.rows[-1] |= self._validate(valid_data, len(self.rows) - 1)
            for callback in callbacks:
                callback.on_epoch_end(self.rows[-1])
        if self.best.exhausted:
            logger.info("%s did not improve in %d evaluations", self.valid_metric, self.best.waited)
        self.model.load_state_dict(self.best_weights)
        self.group.copy_from_first(self.model)
        return self.best

    def _validate(self, valid_data: Any, epoch: int) -> dict[str, float]:
        """Metrics of an epoch on validation; keeps the weights of a new best epoch."""
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        if len(valid_data.dataset):
            ranks = self.ranks(valid_data, f"validation, epoch {epoch}", masked=self.mask_seen)
            metrics = self.metrics(ranks, valid_data)
            better = self.best.update(epoch, metrics[self.valid_metric])
        else:
            better, self.best.epoch = True, epoch
        if better:
            self.best_weights = {name: each.detach().cpu().clone() for name, each in self.model.state_dict().items()}
        return {**metrics, "eval_seconds": time.perf_counter() - started}

    def _train_epoch(self, train_data: Any, epoch: int) -> float:
        """Mean loss of one epoch; 0 for a model that is fitted without one."""
        if self.fits_at_once:
            self.model.fit(train_data.dataset.inter_feat)
            return 0.0
        self.model.train()
        total, samples = 0.0, 0
        for number, batch in enumerate(self._progress(train_data, f"epoch {epoch}")):
            if not self.schedule.constant:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.schedule.rate_at(epoch, number, len(train_data.batches))
            loss, targets = self.step(batch, f"in epoch {epoch}, batch {number}")
            total, samples = total + loss * targets, samples + targets
            return_excess_memory()
        self.samples = samples
        return total / samples

    def step(self, batch: Any, where: str) -> tuple[float, int]:
        """One step of the optimiser: the batch's mean loss, and the number of targets that it is the mean of.

        `batch` is None for one of several processes that has none of its rows. Raises UserError where the loss or the
        gradient is NaN or infinite, before the weights change.
        """
        self.optimizer.zero_grad()
        value, targets = 0.0, 0
        if batch is not None:
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, enabled=self.autocast):
                losses = self.model.calculate_loss(batch)
            loss: Any = sum(losses) if isinstance(losses, tuple) else losses
            self.scaler.scale(loss).backward()
            value, targets = loss.item(), int(torch.count_nonzero(batch[self.model.POS_ITEM_ID]))  # waits for a GPU
        value, targets = self.group.sum_gradients(self.model.parameters(), value, targets)
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} {where}: {REMEDY}")
        self.scaler.unscale_(self.optimizer)
        self._check_gradients(where)
        if self.clip_grad_norm:
            of_model = (each for name, each in self.model.named_parameters() if not name.startswith("history_head."))
            clip_grad_norm_(of_model, **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()
        return value, targets

    def _check_gradients(self, where: str) -> None:
        """A GradScaler skips steps that overflow; any other gradient that is not finite is an error."""
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < SMALLEST_SCALE:
                raise UserError(f"the gradient overflows at every scale {where}: {REMEDY}, or enable_scaler: false")
            return
        gradients = {name: each.grad for name, each in self.model.named_parameters() if each.grad is not None}
        norms = torch._foreach_norm([*gradients.values()])  # together: on a GPU each kernel is a launch
        if not torch.stack(norms).isfinite().all():
            worst = next(name for name, norm in zip(gradients, norms, strict=True) if not norm.isfinite())
            raise UserError(f"the gradient of {worst} is NaN or infinite {where}: {REMEDY}")

    @torch.no_grad()
    def ranks(self, eval_data: Any, what: str, masked: bool = True) -> Ranks:
        """Rank of every evaluated sample's target, and if need be with seen items masked.

        Raises UserError when a score is NaN or infinite.
        """
        self.model.eval()
        dataset = eval_data.dataset
        batches: list[tuple[np.ndarray, ...]] = []
        for number, batch in enumerate(self._progress(eval_data, what.split(",")[0])):
            try:
                batches.append(self._batch_ranks(batch, dataset, masked))
            except FloatingPointError as error:
                raise UserError(f"{what}, batch {number}: {error}: {REMEDY}") from None
        shards = self.group.gather(batches)  # of each batch, every process has ranked its shard
        parts = zip(*(shard for batch in zip(*shards, strict=True) for shard in batch), strict=True)
        rank, among_unseen, lists = (np.concatenate(part) for part in parts)
        samples = dataset.inter_feat
        targets = samples[dataset.iid_field].numpy()
        return Ranks(
            user=dataset.field2id_token[dataset.uid_field][samples[dataset.uid_field].numpy()].astype(str),
            target=dataset.field2id_token[dataset.iid_field][targets].astype(str),
            history_length=dataset.history_lengths(np.arange(len(dataset))),
            rank=among_unseen if self.mask_seen else rank,
            target_frequency=eval_data.item_frequency[targets],
            rank_masked=None if self.mask_seen or np.isnan(among_unseen).any() else among_unseen,
            target_age=dataset.target_age(),
            lists=lists,
        )

    def metrics(self, ranks: Ranks, eval_data: Any) -> dict[str, float]:
        """The metrics of the settings, and HR, NDCG and MRR."""
        metrics = metrics_of_ranks(ranks.rank, self.topk, self.rank_metrics)
        if self.list_metrics and ranks.lists is not None:
            known = eval_data.target_counts
            metrics |= metrics_of_lists(ranks.lists, self.topk, self.list_metrics, known, self.tail_ratio)
        return metrics

    def _batch_ranks(self, batch: Any, dataset: Any, masked: bool) -> tuple[np.ndarray, ...]:
        """Of a batch's targets, by slices: ranks (n,), ranks with seen items masked (n,), top-k lists (n, K).

        Masked ranks are NaN where they are not wanted, and where targets are ranked among drawn items; K is 0 unless a
        metric needs lists. Raises FloatingPointError when a score is not finite.
        """
        n_items = dataset.item_num
        longest = min(max(self.topk), n_items - 1) if self.list_metrics else 0
        if batch is None:
            return np.empty(0), np.empty(0), np.empty((0, longest), dtype=np.int32)
        interaction, candidates, _, positive = batch
        step = max(SCORES_TOGETHER // n_items, 1)
        ranks, unseen, lists = [], [], []
        for start in range(0, len(interaction), step):
            rows = slice(start, start + step)
            part = interaction[rows].to(self.device)
            scores = self.model.full_sort_predict(part).view(len(part), n_items)
            targets = positive[rows].to(self.device)
            among = None if candidates is None else candidates[rows].to(self.device)
            for few in map(slice, range(0, len(part), RANK_ROWS), range(RANK_ROWS, len(part) + RANK_ROWS, RANK_ROWS)):
                few_among = None if among is None else among[few]
                ranks.append(target_ranks(scores[few], targets[few], few_among))
                if among is None and masked:
                    seen = dataset.inter_feat.seen(interaction.samples[rows][few]).to(self.device)
                    unseen.append(masked_ranks(ranks[-1], scores[few], targets[few], seen))
                    if self.mask_seen and longest:
                        scores[few] = scores[few].scatter(1, seen, -torch.inf)
                if longest:
                    lists.append(top_items(scores[few], longest, targets[few], few_among))
        rank = torch.cat(ranks).numpy()
        empty = np.empty((len(positive), 0))
        among_unseen = torch.cat(unseen).numpy() if unseen else np.full_like(rank, np.nan)
        return rank, among_unseen, torch.cat(lists).numpy() if lists else empty

    def _progress(self, batches: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(
            batches, desc=f"{what:>12}", dynamic_ncols=True, leave=False, disable=None if self.show_progress else True
        )

    def summary(self) -> dict[str, Any]:
        """For result.json: size, medians of seconds over epochs, peak MB of the device (CUDA) or this process (CPU)."""
        per_epoch = float(np.median([row["train_seconds"] for row in self.rows]))
        per_evaluation = float(np.median([row["eval_seconds"] for row in self.rows if "eval_seconds" in row] or 0))
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        elif resource is None:
            peak = 0.0
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return {
            "epochs": len(self.rows),
            "best_epoch": self.best.epoch,
            "n_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "seconds_per_epoch": round(per_epoch, 3),
            "samples_per_second": round(self.samples / per_epoch, 1),
            "eval_seconds": round(per_evaluation, 3),
            "peak_memory_mb": round(peak, 1),
            "processes": self.group.size,
        }
