"""SequenceDataset: RecBole's sequential data set, in exact time order, in memory proportional to the interactions."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_sigma.data.atomic import AtomicFormat, AtomicTable, read_atomic
from recbole_sigma.data.fields import check_fields, normalised
from recbole_sigma.data.prefixes import FlatHistories, Prefixes, Rows
from recbole_sigma.errors import UserError


class SequenceDataset(SequentialDataset):
    """What RecBole's models, trainer and evaluator know as a data set.

    RecBole's code filters and numbers users and items (ids equal its own); reading, order and batches are ours.
    `time_order: exact` sorts a user's interactions by the time as written in the file, equal times as in the file;
    `time_order: recbole` by the time as RecBole has it, cast to float32.
    """

    inter_feat: Any  # pandas.DataFrame while RecBole filters it, then Prefixes
    _file: Path  # NAME.inter
    _sha256: str
    _time_as_written: np.ndarray  # of the rows of the file
    _kept_rows: np.ndarray | None  # rows of the file that are left after filtering, in their present order; None: all

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._flatten()

    def _load_data(self, token: str, dataset_path: str) -> None:
        """Read the files. (RecBole would offer a download when the folder is missing.)"""
        self._file = Path(dataset_path, f"{token}.inter")
        if not self._file.is_file():
            raise UserError(f"{self._file}: no such file (settings data_path, dataset); see dataset/README.md")
        super()._load_data(token, dataset_path)
        feats = {"inter": self.inter_feat, "user": self.user_feat, "item": self.item_feat}
        columns = {file: list(feat) for file, feat in feats.items() if feat is not None}
        check_fields(self.config, columns, self.field2type)

    def _load_feat(self, filepath: str, source: FeatureSource) -> pd.DataFrame | None:
        """Read one file into a table and note its fields, as RecBole does, but fast and with every line checked."""
        wanted = (self.config["load_col"] or {source.value: "*"}).get(source.value, [])
        unwanted = (self.config["unload_col"] or {}).get(source.value, [])
        if not wanted:
            return None
        if unwanted and wanted != "*":
            raise UserError(f"load_col, unload_col: only one of them can be given for {source.value}")
        user, item = {self.uid_field: "USER_ID_FIELD"}, {self.iid_field: "ITEM_ID_FIELD"}
        form = AtomicFormat(user if source == FeatureSource.USER else item)
        if source == FeatureSource.INTERACTION:
            form = AtomicFormat({**user, **item}, {self.time_field: "TIME_FIELD"})
        table = read_atomic(
            Path(filepath), form, lambda name: name not in unwanted and (wanted == "*" or name in wanted)
        )
        for name, kind in table.types.items():
            self.field2source[name] = source
            self.field2type[name] = kind
            if kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                self.field2bucketnum[name] = 2
            if kind in (FeatureType.TOKEN, FeatureType.FLOAT):
                self.field2seqlen[name] = 1
            else:
                table.frame[name] = self._split_sequences(table, name, kind)
        if source == FeatureSource.INTERACTION:
            self._sha256 = table.sha256
            self._time_as_written = table.frame[self.time_field].to_numpy()
            table.frame[self.time_field] = table.frame[self.time_field].astype(np.float64)  # as RecBole has it
        return table.frame

    def _split_sequences(self, table: AtomicTable, name: str, kind: FeatureType) -> list[np.ndarray]:
        """Cells such as 'Toy Story' -> arrays; notes the longest (setting `seq_len` cuts it)."""
        limit = (self.config["seq_len"] or {}).get(name)
        cells = [list(filter(None, cell.split(" ")))[:limit] for cell in table.frame[name]]
        self.field2seqlen[name] = max(map(len, cells))
        if kind == FeatureType.TOKEN_SEQ:
            return [np.array(words, dtype=str) for words in cells]
        numbers = []
        for row, words in enumerate(cells):
            try:
                numbers.append(np.array(words, dtype=np.float64))
            except ValueError as error:
                raise table.error(row, f"{name}:float_seq is {' '.join(words)!r}; numbers are expected") from error
        return numbers

    def _remove_duplication(self) -> None:
        """RecBole keeps a pair's first or last interaction after a sort that may swap equal times; ours is stable."""
        keep = self.config["rm_dup_inter"]
        if keep is None or self.config["time_order"] == "recbole":
            super()._remove_duplication()
            return
        by_time = np.argsort(self._time_as_written[self.inter_feat.index.to_numpy()], kind="stable")
        self.inter_feat = self.inter_feat.iloc[by_time].drop_duplicates([self.uid_field, self.iid_field], keep=keep)

    def _filter_inter_by_user_or_item(self) -> None:
        """RecBole copies all interactions, also where there are no tables of users and items to compare with."""
        if self.user_feat is not None or self.item_feat is not None:
            super()._filter_inter_by_user_or_item()

    def _filter_by_inter_num(self) -> None:
        """The settings user_inter_num_interval and item_inter_num_interval, with exactly RecBole's result.

        RecBole counts in Python. This takes a second for 2 million interactions, so that no result needs to be kept.
        """
        from recbole_sigma.convert.filters import without_refused

        fields = {"user": self.uid_field, "item": self.iid_field}
        texts = {side: self.config[f"{side}_inter_num_interval"] for side in fields}
        if not {*texts.values()} - {None, "[0,inf)"}:
            return
        codes, described, refuse, intervals = {}, {}, {}, {}
        for side, field in fields.items():
            ids, feat = self.inter_feat[field].array, getattr(self, f"{side}_feat")
            intervals[side] = self._parse_intervals_str(texts[side]) or []
            codes[side] = ids.codes
            described[side] = ids.categories.get_indexer([] if feat is None else feat[field])
            in_file = np.isin(np.arange(len(ids.categories)), described[side])
            refuse[side] = partial(self._refused, intervals[side], in_file)
        users, items = (len(self.inter_feat[field].array.categories) for field in fields.values())
        counted = codes["user"], codes["item"], refuse["user"], refuse["item"]
        rows, *refused = without_refused(*counted, sizes=(users, items))
        self.inter_feat = self.inter_feat.iloc[rows]
        for side, gone in zip(fields, refused, strict=True):
            feat, known = getattr(self, f"{side}_feat"), described[side]
            if feat is not None and intervals[side]:
                without_interactions = intervals[side][0][1] > 0
                setattr(self, f"{side}_feat", feat[~np.where(known < 0, without_interactions, gone[known])])

    def _refused(self, intervals: list[Any], described: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Ids whose `counts` are outside the intervals; those in the .user or .item file also if they are too few."""
        if not intervals:
            return np.zeros(len(counts), bool)
        small = described & (counts < intervals[0][1])
        return (counts > 0) & ~self._within_intervals(counts, intervals) | small

    def _normalize(self) -> None:
        """RecBole's own fails on a list column of equal numbers, and goes through every cell in Python."""
        fields = self.float_like_fields if self.config["normalize_all"] else self.config["normalize_field"] or ()
        for name in fields:
            for feat in self.field2feats(name):
                feat[name] = normalised(feat[name])

    def _reset_index(self) -> None:
        """RecBole's last step of filtering; notes which rows of the file are left."""
        if self.inter_feat.empty:
            raise UserError(
                "no interaction is left; the settings user_inter_num_interval, item_inter_num_interval, val_interval, "
                "filter_inter_by_user_or_item decide what is kept"
            )
        index = self.inter_feat.index
        everything = isinstance(index, pd.RangeIndex) and len(index) == len(self._time_as_written)
        self._kept_rows = None if everything else index.to_numpy()
        super()._reset_index()

    def _remap(self, remap_list: list[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        """Number tokens that columns share from 1, in order of first appearance; RecBole makes objects of all cells."""
        if not remap_list:
            return
        cells: list[Any] = []
        for feat, name, kind in remap_list:
            in_lists = kind == FeatureType.TOKEN_SEQ
            cells.append(np.concatenate([row.astype(object) for row in feat[name]]) if in_lists else feat[name].array)
        if len(cells) == 1 and isinstance(cells[0], pd.Categorical):
            numbers, used = pd.factorize(cells[0].codes)
            tokens = cells[0].categories[used]
        else:
            numbers, tokens = pd.factorize(np.concatenate([np.asarray(column, dtype=object) for column in cells]))
        id_token = np.array(["[PAD]", *tokens])
        token_id = {token: number for number, token in enumerate(id_token)}
        ends = np.cumsum([len(column) for column in cells])[:-1]
        for (feat, name, kind), ids in zip(remap_list, np.split(numbers + 1, ends), strict=True):
            self.field2id_token.setdefault(name, id_token)
            self.field2token_id.setdefault(name, token_id)
            if kind == FeatureType.TOKEN_SEQ:
                feat[name] = np.split(ids, np.cumsum([len(row) for row in feat[name]])[:-1])
            else:
                feat[name] = ids

    def _flatten(self) -> None:
        """Table of interactions -> flat arrays in the order of (user, time), one column after the other."""
        frame = self.inter_feat
        users = frame[self.uid_field].to_numpy()
        counts = np.bincount(users, minlength=self.user_num)
        if counts.max() < 3:
            raise UserError(
                f"{self._file}: no user has 3 or more interactions (the longest history has {counts.max()}); a user "
                "needs one each for training, validation and test"
            )
        rows = self._kept_rows
        if self.config["time_order"] == "recbole":
            time = frame[self.time_field].to_numpy().astype(np.float32)
            order = np.lexsort((time, users))
        else:
            time = self._time_as_written if rows is None else self._time_as_written[rows]
            if rows is None or np.all(rows[1:] > rows[:-1]):
                order = _by_user_and_time(users, time)
            else:  # `rm_dup_inter` has sorted by time
                order = np.lexsort((rows, time, users))
        self._aug_presets()
        user_start = np.concatenate([[0], np.cumsum(counts)])
        targets = _targets_by_first_time(user_start, time[order])
        del time, users, rows, self._time_as_written, self._kept_rows
        columns = {}
        for name in list(frame.columns):
            columns[name] = self._tensor(pd.Series(frame[name].to_numpy()[order], name=name))
            del frame[name]
        pa.default_memory_pool().release_unused()  # the columns were pyarrow's
        flat = FlatHistories(columns, user_start, self.uid_field, self.iid_field)
        any_length = getattr(self.config.model_class, "accepts_any_length", False)
        self.inter_feat = Prefixes(flat, targets, self.max_item_list_len, any_length)

    def _tensor(self, column: pd.Series) -> Tensor:
        """A column as RecBole's tensor: int64 ids, float32 numbers, or padded rows of them."""
        dtype = {FeatureType.TOKEN: np.int64, FeatureType.FLOAT: np.float32}.get(self.field2type[column.name])
        if dtype is None or column.name in self.config["numerical_features"]:
            return super()._dataframe_to_interaction(column.to_frame())[column.name]
        return torch.from_numpy(column.to_numpy(dtype=dtype, copy=True))  # pandas 3: read-only, at which torch warns

    def _change_feat_format(self) -> None:
        """Tables of users and items become tensors, as in RecBole; the interactions are flat arrays already."""
        for name in self.feat_name_list:
            feat = getattr(self, name)
            if isinstance(feat, pd.DataFrame):
                setattr(self, name, self._dataframe_to_interaction(feat))

    def build(self) -> "list[SequenceDataset]":
        """The training, validation and test split, leave-one-out in time order.

        As RecBole: a user's first sample always stays in training, the last goes to test, the one before to validation.
        """
        self._change_feat_format()
        self._drop_unused_col()
        samples = self.inter_feat
        user = samples.flat.columns[self.uid_field].numpy()[samples.targets]
        left = samples.flat.user_start[user + 1] - 1 - samples.targets  # samples of the user after this one
        before = samples.history_lengths(slice(None)) - 1  # and before
        mode = self.config["eval_args"]["split"]["LS"]
        valid = (left == (mode == "valid_and_test")) & (before >= 1) & (mode != "test_only")
        test = (left == 0) & (before >= 1) & (mode != "valid_only")
        return [self.copy(samples.select(rows)) for rows in (~(valid | test), valid, test)]

    def history_lengths(self, index: Rows) -> np.ndarray:
        """Interactions before the target of each row, not truncated: (n,) int64."""
        return self.inter_feat.history_lengths(index)

    def statistics(self) -> dict[str, int | float]:
        """After filtering: users, items, interactions, mean_length (mean interactions per user), sparsity."""
        flat = self.inter_feat.flat
        users = int(np.count_nonzero(np.diff(flat.user_start)))
        items = len(np.unique(flat.columns[self.iid_field].numpy()))
        n = int(flat.user_start[-1])
        sizes = {"users": users, "items": items, "interactions": n}
        return {**sizes, "mean_length": n / users, "sparsity": 1 - n / (users * items)}

    def checksum(self) -> str:
        """SHA-256 of the .inter file, in hexadecimal."""
        return self._sha256

    @property
    def inter_num(self) -> int:
        """Interactions left after filtering."""
        feat = self.inter_feat
        return len(feat) if isinstance(feat, pd.DataFrame) else int(feat.flat.user_start[-1])

    @property
    def avg_actions_of_users(self) -> float:
        """Mean number of interactions of a user."""
        return self.statistics()["mean_length"]

    @property
    def avg_actions_of_items(self) -> float:
        """Mean number of interactions of an item."""
        return self.inter_num / self.statistics()["items"]

    def __getitem__(self, index: Rows, join: bool = True) -> Any:
        """A batch (recbole.data.interaction.Interaction) of the samples `index`."""
        batch = self.inter_feat[index]
        return self.join(batch) if join and not self.inter_feat.any_length else batch


def _by_user_and_time(users: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The stable order by (user, time); of one number for both where int64 has room, in a third of the time."""
    low = int(time.min()) if time.dtype == np.int64 else 0
    span = int(time.max()) - low + 1 if time.dtype == np.int64 else 2**63
    if (int(users.max()) + 1) * span >= 2**63:
        return np.lexsort((time, users))
    return np.argsort(users * np.int64(span) + (time - low), kind="stable")


def _targets_by_first_time(user_start: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Positions of the targets of all samples, with users in RecBole's order.

    That is by the time of their first target, equal times by user id. `user_start` (users + 1,), `time` (interactions,)
    by (user, time).
    """
    count = np.diff(user_start)
    users = np.flatnonzero(count >= 2)
    users = users[np.argsort(time[user_start[users] + 1], kind="stable")]
    samples = count[users] - 1
    ends = np.cumsum(samples)
    first = user_start[users] + 1
    return np.arange(ends[-1]) + np.repeat(first - (ends - samples), samples)
