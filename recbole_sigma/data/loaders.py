"""RecBole's loaders without a Python list of all samples, and with a small state that can be saved.

Subclasses, because RecBole's trainer asks for the types; they draw the same batches from the same seed.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from recbole.data.transform import Equal, construct_transform
from recbole.utils import ModelType
from torch.utils.data import DataLoader, Dataset, Sampler

from recbole_sigma.data.dataset import SequenceDataset
from recbole_sigma.data.prefixes import LIST_LENGTH, Prefixes

_DRAWN_TOGETHER = 1024  # rows whose candidates are drawn together, whatever the batches


class Batch(NamedTuple):
    """Samples `rows` (n,) of batch `number` of epoch `epoch`, both from 0: process `rank`'s shard, perhaps empty."""

    epoch: int
    number: int
    rows: np.ndarray
    rank: int = 0


class BatchSampler(Sampler[Batch]):
    """Batches of row numbers, in order, or shuffled in each epoch by `generator`, as torch's RandomSampler does.

    With `sizes`, (rows,), a batch is full when its sizes add up to `batch_size`, and holds at least one row.
    """

    def __init__(
        self, n_rows: int, batch_size: int, generator: torch.Generator | None, sizes: np.ndarray | None = None
    ) -> None:
        self.n_rows = n_rows
        self.batch_size = batch_size
        self.generator = generator
        self.sizes = sizes
        self.epoch = 0
        self.rank, self.size = 0, 1

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch; each row belongs to the shard of one process."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = self._permutation()
        ends = np.arange(self.batch_size, self.n_rows, self.batch_size)  # of all batches but the last
        if self.sizes is not None:
            before = np.cumsum(self.sizes[order]) - self.sizes[order]
            ends = np.flatnonzero(np.diff(before // self.batch_size)) + 1
        for number, rows in enumerate(np.split(order, ends) if self.n_rows else ()):
            yield Batch(epoch, number, np.array_split(rows, self.size)[self.rank], self.rank)
        self._permutation()  # RandomSampler draws one more at the end of an epoch; the next epoch's depends on it

    def __len__(self) -> int:
        """With `sizes`, of a mean epoch: how many batches there are depends on the order."""
        return -(-(self.n_rows if self.sizes is None else int(self.sizes.sum())) // self.batch_size)

    def _permutation(self) -> np.ndarray:
        if self.generator is None:
            return np.arange(self.n_rows)
        return torch.randperm(self.n_rows, generator=self.generator).numpy()


class _Rows(Dataset[Any]):
    """The data set of a torch DataLoader whose batches are made as a whole by its `collate_fn`."""

    def __getitems__(self, batch: Batch) -> Batch:
        """torch asks for a whole batch here."""
        return batch


class _LeanLoader(AbstractDataLoader):
    """RecBole's AbstractDataLoader, set up without `list(range(samples))`. Same attributes."""

    sample_size: int
    step: int

    def __init__(self, config: Any, dataset: SequenceDataset, sampler: Any, shuffle: bool = False) -> None:
        self.shuffle = shuffle
        self.config = config
        self._dataset = dataset
        self._sampler = sampler
        self.model = None
        self._init_batch_size_and_step()
        self.generator = torch.Generator().manual_seed(config["seed"])
        self.transform = construct_transform(config)  # for mask_itemseq it names the model's fields in `config`, too
        if config["transform"] == "mask_itemseq" and config["train_mode"] == "sequence":
            self.transform = Equal(config)  # the model draws the masks, of training only
        self.is_sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        any_length = isinstance(dataset.inter_feat, Prefixes) and dataset.inter_feat.any_length
        if any_length and sampler is None and not config["transform"] and not config["worker"]:
            dataset.inter_feat.device = config["device"]  # all that makes the batch can work there
        sizes = getattr(dataset.inter_feat, "n_targets", None)  # of windows
        self.batches = BatchSampler(self.sample_size, self.step, self.generator if shuffle else None, sizes)
        DataLoader.__init__(
            self,
            dataset=_Rows(),
            batch_sampler=self.batches,  # type: ignore[arg-type]  # torch's stub asks for lists
            collate_fn=self.collate_fn,
            num_workers=config["worker"] or 0,
            generator=self.generator,
        )

    def shard(self, rank: int, size: int) -> None:
        """From now on give process `rank` of `size` its shard of every batch; None for a shard without a row."""
        self.batches.rank, self.batches.size = rank, size

    def state(self) -> dict[str, Any]:
        """All that determines the next batches, between two epochs."""
        return {"epoch": self.batches.epoch, "generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue as the loader that gave `state` would."""
        self.batches.epoch = state["epoch"]
        self.generator.set_state(state["generator"])


class TrainLoader(TrainDataLoader, _LeanLoader):
    """Random batches of prefixes, with negatives where the model's loss asks for them."""

    def collate_fn(self, batch: Batch) -> Interaction | None:
        """The batch as tensors; its negatives depend on (seed, epoch, number of the batch, process) only."""
        self._seed_negatives(batch)
        return super().collate_fn(batch.rows) if len(batch.rows) else None

    def _seed_negatives(self, batch: Batch) -> None:
        if isinstance(self._sampler, UniformNegatives):
            process = [batch.rank] if batch.rank else []
            self._sampler.seed(self.config["seed"], batch.epoch, batch.number, *process)


class WindowLoader(TrainLoader):
    """Random batches of windows with `train_batch_size` targets in each batch, and at most one negative per target."""

    def collate_fn(self, batch: Batch) -> Interaction | None:
        """The windows, flat (data/windows.py); negatives depend on (seed, epoch, number of the batch, process) only."""
        if not len(batch.rows):
            return None
        windows = self._dataset[batch.rows]
        if self._sampler is not None:
            positive = windows[self._dataset.iid_field]
            at = positive.nonzero()[:, 0]
            self._seed_negatives(batch)
            users = windows[self._dataset.uid_field].repeat_interleave(windows[LIST_LENGTH])[at].numpy()
            negative = torch.zeros_like(positive)
            negative[at] = self._sampler.sample_by_user_ids(users, positive[at].numpy(), 1)
            windows.update(Interaction({self.neg_prefix + self.iid_field: negative}))
        return windows


class EvalLoader(FullSortEvalDataLoader, _LeanLoader):
    """Every evaluated sample once, unshuffled: `(interaction, candidates, positive_u, positive_i)`."""

    def __init__(
        self, config: Any, dataset: SequenceDataset, train: SequenceDataset, sampled: "SampledItems | None" = None
    ) -> None:
        """`train` is the training split, which says how often each item is known; `sampled` is for sampled metrics."""
        super().__init__(config, dataset, None)
        self._train = train
        self._sampled = sampled

    def collate_fn(self, batch: Batch) -> tuple[Interaction, torch.Tensor | None, torch.Tensor, torch.Tensor] | None:
        """Rows of `batch`, the items that targets are ranked among, which row each target belongs to, the targets.

        Candidates are (B, n), with repetitions and without the target; None if all items are ranked.
        """
        if not len(batch.rows):
            return None
        interaction, _, row, target = super().collate_fn(batch.rows)
        interaction.samples = batch.rows  # their numbers in the split, (B,); an attribute, since fields are the model's
        candidates = None
        if self._sampled:
            candidates = torch.from_numpy(self._sampled.draw(batch.rows, target.numpy()))
        return interaction, candidates, row, target

    @cached_property
    def target_counts(self) -> np.ndarray:
        """How many training samples have each item as target (RecBole's `item_counter`): (V,)."""
        targets = self._train.inter_feat[self._train.iid_field].numpy()
        return np.bincount(targets, minlength=self._train.item_num)

    @cached_property
    def item_frequency(self) -> np.ndarray:
        """How many training interactions each item has, a history's first one included: (V,)."""
        samples = self._train.inter_feat
        items = samples.flat.columns[samples.flat.item].numpy()[samples.interactions()]
        return np.bincount(items, minlength=self._train.item_num)


class SampledItems:
    """`number` items for each evaluated row, drawn with replacement among all but the target.

    RecBole's protocol (RepeatableSampler), with one difference: RecBole draws other items in each evaluation. Here they
    depend on the seed, the split and the row only, so that epochs and models are compared on the same items.
    """

    def __init__(self, weights: np.ndarray, number: int, seed: Sequence[int]) -> None:
        """`weights` (V,) int64: how likely each item is, relative to the others; 0 for the padding item."""
        self._weights, self._ends = weights, np.cumsum(weights)
        self._number, self._seed = number, seed

    def draw(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Items for each of `rows` (n,), whose targets are (n,): (n, number)."""
        blocks, block_of_row = np.unique(rows // _DRAWN_TOGETHER, return_inverse=True)
        size = _DRAWN_TOGETHER, self._number
        drawn = np.stack([np.random.default_rng((*self._seed, int(block))).random(size) for block in blocks])
        own = self._weights[targets][:, None]
        point = (drawn[block_of_row, rows % _DRAWN_TOGETHER] * (self._ends[-1] - own)).astype(np.int64)
        point += np.where(point >= self._ends[targets][:, None] - own, own, 0)  # leaves the target out
        return np.searchsorted(self._ends, point, side="right")


class UniformNegatives:
    """Negatives drawn evenly from all items but the positive one, as by RecBole's RepeatableSampler (a set per row)."""

    def __init__(self, n_items: int) -> None:
        """`n_items`, at least 3, counts the padding item 0."""
        self._n_items = n_items
        self._random = np.random.default_rng()

    def seed(self, *numbers: int) -> None:
        """All further draws depend on `numbers` only."""
        self._random = np.random.default_rng(numbers)

    def sample_by_user_ids(self, user_ids: np.ndarray, item_ids: np.ndarray, num: int) -> torch.Tensor:
        """(n,), (n,) -> (n * num,): negatives of row i are at i, i + n, i + 2n ..."""
        positive = np.tile(np.asarray(item_ids), num)
        drawn = self._random.integers(1, self._n_items - 1, len(positive))
        return torch.from_numpy(drawn + (drawn >= positive))
