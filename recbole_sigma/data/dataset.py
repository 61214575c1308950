"""SequenceDataset: RecBole's sequential data set, in exact time order, in memory proportional to the interactions."""

import hashlib
import logging
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

from recbole_sigma.data.arrays import Storage, cache_folder, count, first_appearance
from recbole_sigma.data.atomic import AtomicFormat, AtomicTable, file_digest, read_atomic, read_columns
from recbole_sigma.data.fields import check_fields, check_names, feature_files, feature_paths, left_out, normalised
from recbole_sigma.data.prefixes import LIST_SUFFIX, FlatHistories, Prefixes, Rows
from recbole_sigma.data.splits import all_targets, cut_offs, interaction_files, lists_histories, split_rows, unroll
from recbole_sigma.errors import UserError

SECONDS_PER_DAY = 86_400

logger = logging.getLogger(__name__)


class SequenceDataset(SequentialDataset):
    """What RecBole's models, trainer and evaluator know as a data set.

    RecBole's code filters and numbers users and items (ids equal its own); reading, order and batches are ours.
    `time_order: exact` sorts a user's interactions by the time as written in the file, equal times as in the file;
    `time_order: recbole` by the time as RecBole has it, cast to float32.
    """

    inter_feat: Any  # pandas.DataFrame while RecBole filters it, then Prefixes
    _files: list[Path]  # NAME.inter, or those that `benchmark_filename` names
    _sha256: list[str]  # of the files
    _times: list[np.ndarray]  # as written, of the rows of each file
    _time_as_written: np.ndarray  # of all rows
    _listed: bool  # whether each row of the files is a sample with its history
    _target_time: np.ndarray | None = None  # of all samples, where the split depends on it
    _target_file: np.ndarray | None = None  # number of the file that each sample comes from, if there are several
    _kept_rows: np.ndarray | None  # rows of the file that filters left, in their present order; None: all
    _storage: Storage  # of all arrays that are as long as the files

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._flatten()

    def _load_data(self, token: str, dataset_path: str) -> None:
        """Read the files. (RecBole would offer a download when the folder is missing.)"""
        self._files, self._sha256, self._times = interaction_files(self.config), [], []
        self._storage = Storage(cache_folder(self._files, self.config["memory_map_above"]))
        self._listed = bool(self.benchmark_filename_list) and lists_histories(self._files[0], self.iid_field)
        super()._load_data(token, dataset_path)
        if not self._listed:
            self._time_as_written = self._times[0] if len(self._times) == 1 else np.concatenate(self._times)
        self._kept_rows = None
        feats = {"inter": self.inter_feat, "user": self.user_feat, "item": self.item_feat}
        columns = {file: list(feat) for file, feat in feats.items() if feat is not None}
        if self._listed:
            columns["inter"] = [name for name in columns["inter"] if not name.endswith(LIST_SUFFIX)]
        check_fields(self.config, columns, self.field2type)

    def _load_feat(self, filepath: str, source: FeatureSource) -> pd.DataFrame | None:
        """Read one file into a table and note its fields, as RecBole does, but fast and with every line checked."""
        if source.value in ("user", "item") and source.value not in feature_files(self.config):
            return None
        wanted = (self.config["load_col"] or {source.value: "*"}).get(source.value, [])
        unwanted = (self.config["unload_col"] or {}).get(source.value, [])
        if not wanted:
            return None
        if unwanted and wanted != "*":
            raise UserError(f"load_col, unload_col: only one of them can be given for {source.value}")
        user, item = {self.uid_field: "USER_ID_FIELD"}, {self.iid_field: "ITEM_ID_FIELD"}
        form = AtomicFormat(user if source == FeatureSource.USER else item)
        if source == FeatureSource.INTERACTION:
            form = AtomicFormat({**user, **item}, {} if self._listed else {self.time_field: "TIME_FIELD"})
        columns = read_columns(Path(filepath))
        for setting, names in {"load_col": () if wanted == "*" else wanted, "unload_col": unwanted}.items():
            check_names(setting, source.value, names, columns)
        is_wanted = lambda name: name not in unwanted and (wanted == "*" or name in wanted)  # noqa: E731
        storage = self._storage if source == FeatureSource.INTERACTION else None
        table = read_atomic(Path(filepath), form, is_wanted, storage)
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
            self._sha256.append(table.sha256)
            if not self._listed:
                self._times.append(table.frame[self.time_field].to_numpy())
                if self._times[-1].dtype != np.float64:  # as RecBole has it
                    time = self._storage.take(self._times[-1], dtype=np.float64)
                    table.frame[self.time_field] = pd.Series(time, copy=False)
        return table.frame

    def _split_sequences(self, table: AtomicTable, name: str, kind: FeatureType) -> list[np.ndarray]:
        """Cells such as 'Toy Story' -> arrays; notes the longest (setting `seq_len` cuts it)."""
        limit = (self.config["seq_len"] or {}).get(name)
        column = table.frame[name].array
        words = [[word for word in text.split(" ") if word][:limit] for text in column.categories]
        words.append([])  # of a missing cell, whose code is -1
        cells = [words[code] for code in column.codes]
        self.field2seqlen[name] = max(map(len, cells))
        if self._listed and name == self.iid_field + LIST_SUFFIX and not all(cells):
            raise table.error(cells.index([]), f"{name} is empty; a sample needs a history of at least one item")
        if kind == FeatureType.TOKEN_SEQ:
            return [np.array(cell, dtype=str) for cell in cells]
        numbers = []
        for row, cell in enumerate(cells):
            try:
                numbers.append(np.array(cell, dtype=np.float64))
            except ValueError as error:
                raise table.error(row, f"{name}:float_seq is {' '.join(cell)!r}; numbers are expected") from error
        return numbers

    def _set_alias(self, alias_name: str, default_value: list[str]) -> None:
        """Items of listed histories have the ids of items."""
        listed = [self.iid_field + LIST_SUFFIX] if self._listed and alias_name == "item_id" else []
        super()._set_alias(alias_name, [*default_value, *listed])

    def _benchmark_presets(self) -> None:
        """RecBole's lists are columns of the files; ours are made for batches in either case."""

    def _remove_duplication(self) -> None:
        """RecBole keeps a pair's first or last interaction after a sort that may swap equal times; ours is stable."""
        keep = self.config["rm_dup_inter"]
        if keep is None or self.config["time_order"] == "recbole":
            super()._remove_duplication()
            return
        by_time = np.argsort(self._time_as_written[self.inter_feat.index.to_numpy()], kind="stable")
        self.inter_feat = self.inter_feat.iloc[by_time].drop_duplicates([self.uid_field, self.iid_field], keep=keep)

    def _filter_inter_by_user_or_item(self) -> None:
        """RecBole leaves out interactions whose user or item is not in the .user or .item file; ours says so.

        RecBole also copies all interactions where there is no such file.
        """
        if not self.config["filter_inter_by_user_or_item"] or self.user_feat is self.item_feat is None:
            return
        folder, feats = Path(self.dataset_path), {"user": self.user_feat, "item": self.item_feat}
        ids = {"user": self.uid_field, "item": self.iid_field}
        files = {ids[file]: (folder / f"{self.dataset_name}.{file}", feat) for file, feat in feats.items()}
        for sentence in left_out(self.inter_feat, files):
            logger.warning(sentence)
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
        self._keep_rows(rows)
        for side, gone in zip(fields, refused, strict=True):
            feat, known = getattr(self, f"{side}_feat"), described[side]
            if feat is not None and intervals[side]:
                without_interactions = intervals[side][0][1] > 0
                setattr(self, f"{side}_feat", feat[~np.where(known < 0, without_interactions, gone[known])])

    def _filter_by_field_value(self) -> None:
        """The setting val_interval, as RecBole has it."""
        for name, interval in (self.config["val_interval"] or {}).items():
            intervals = self._parse_intervals_str(interval) if isinstance(interval, str) else None
            for file in self.feat_name_list:
                feat = getattr(self, file)
                if name in feat:
                    column = feat[name]
                    inside = column.isin(interval) if intervals is None else self._within_intervals(column, intervals)
                    self._keep_rows(np.flatnonzero(inside), file)

    def _keep_rows(self, rows: np.ndarray, file: str = "inter_feat") -> None:
        """Leave out all other rows of a table."""
        frame = getattr(self, file)
        columns = {}
        for name in frame:
            values = frame[name].array
            if isinstance(values, pd.Categorical):
                columns[name] = pd.Categorical.from_codes(self._storage.take(values.codes, rows), dtype=values.dtype)
            else:
                columns[name] = self._storage.take(values.to_numpy(), rows)
        setattr(self, file, pd.DataFrame(columns, index=frame.index[rows], copy=False))

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
        columns, tokens = [], []
        for feat, name, kind in remap_list:
            column = feat[name].array
            if kind == FeatureType.TOKEN_SEQ:
                column = pd.Categorical(np.concatenate([row.astype(object) for row in column]))
            elif not isinstance(column, pd.Categorical):
                column = pd.Categorical(column)
            number, used = first_appearance(column.codes, len(column.categories))
            columns.append((column.codes, number))
            tokens.append(np.asarray(column.categories[used], dtype=object))
        shared, texts = pd.factorize(np.concatenate(tokens))
        id_token = np.array(["[PAD]", *texts])
        token_id = {token: number for number, token in enumerate(id_token)}
        ends = np.cumsum([len(each) for each in tokens])[:-1]
        for (feat, name, kind), (codes, number), ids in zip(remap_list, columns, np.split(shared, ends), strict=True):
            self.field2id_token.setdefault(name, id_token)
            self.field2token_id.setdefault(name, token_id)
            of_code = np.append(ids + 1, 0)[number]
            if kind == FeatureType.TOKEN_SEQ:
                feat[name] = np.split(of_code[codes], np.cumsum([len(row) for row in feat[name]])[:-1])
            else:
                dtype = np.int32 if feat is self.inter_feat else np.int64
                feat[name] = pd.Series(self._storage.take(of_code, codes, dtype), copy=False)

    def _flatten(self) -> None:
        """Table of interactions -> flat arrays in the order of (user, time), one column after the other."""
        if self._listed:
            self._flatten_samples()
            return
        frame = self.inter_feat
        users = frame[self.uid_field].to_numpy()
        counts = count(users, self.user_num)
        left_out = "LS" in self.config["eval_args"]["split"] and not self.benchmark_filename_list
        if counts.max() < 2 + left_out:
            raise UserError(
                f"{self._files[0]}: no user has {2 + left_out} or more interactions (the longest history has "
                f"{counts.max()}); a sample is an item and the history before it"
            )
        rows = self._kept_rows
        by_file: list[np.ndarray] = []
        if self.benchmark_filename_list:
            files = np.repeat(np.arange(len(self._files)), self.file_size_list)
            by_file = [files if rows is None else files[rows]]
        storage = self._storage
        if self.config["time_order"] == "recbole":
            time = storage.take(frame[self.time_field].to_numpy(), dtype=np.float32)
            keys = [time, *by_file]
        else:
            time = self._time_as_written if rows is None else storage.take(self._time_as_written, rows)
            keys = [time, *by_file]
            if rows is not None and not np.all(rows[1:] > rows[:-1]):  # `rm_dup_inter` has sorted by time
                keys = [rows, time]
        user_start = np.concatenate([[0], np.cumsum(counts)])
        order = storage.order(users, user_start, keys)
        self._aug_presets()
        seconds = np.flatnonzero(counts >= 2)  # users that have a first target
        seconds = seconds[np.argsort(time[order[user_start[seconds] + 1]], kind="stable")]
        targets = all_targets(user_start, seconds)
        if by_file:
            self._target_file = by_file[0][order][targets]
        if "LS" not in self.config["eval_args"]["split"]:
            self._target_time = storage.take(storage.take(time, order), targets)
        del time, users, rows, by_file, keys, self._time_as_written, self._kept_rows, self._times
        columns = {}
        for name in list(frame.columns):
            columns[name] = self._tensor(frame.pop(name), order)
        pa.default_memory_pool().release_unused()  # the columns were pyarrow's
        self._keep(FlatHistories(columns, user_start, self.uid_field, self.iid_field), targets)

    def _flatten_samples(self) -> None:
        """Table of samples with their histories -> flat arrays, sample after sample."""
        self._target_file = np.repeat(np.arange(len(self._files)), self.file_size_list)
        self.inter_feat, start, sample = unroll(self.inter_feat, self.uid_field, self.iid_field)
        self._aug_presets()
        in_order = np.arange(len(self.inter_feat))
        columns = {name: self._tensor(self.inter_feat[name], in_order) for name in self.inter_feat}
        self._keep(FlatHistories(columns, start, self.uid_field, self.iid_field, sample), start[1:] - 1)

    def _keep(self, flat: FlatHistories, targets: np.ndarray) -> None:
        any_length = getattr(self.config.model_class, "accepts_any_length", False)
        self.inter_feat = Prefixes(flat, targets, self.max_item_list_len, any_length)

    def _tensor(self, column: pd.Series, rows: np.ndarray) -> Tensor:
        """Rows of a column as RecBole's tensor: int64 ids, float32 numbers, or padded rows of them."""
        dtype = {FeatureType.TOKEN: np.int64, FeatureType.FLOAT: np.float32}.get(self.field2type[column.name])
        if dtype is None or column.name in self.config["numerical_features"]:
            return super()._dataframe_to_interaction(column.iloc[rows].to_frame())[column.name]
        return torch.from_numpy(self._storage.take(column.to_numpy(), rows, dtype))

    def _change_feat_format(self) -> None:
        """Tables of users and items become tensors, as in RecBole; the interactions are flat arrays already."""
        for name in self.feat_name_list:
            feat = getattr(self, name)
            if isinstance(feat, pd.DataFrame):
                setattr(self, name, self._dataframe_to_interaction(feat))

    def build(self) -> "list[SequenceDataset]":
        """The training, validation and test split (data/splits.py); one may be empty."""
        self._change_feat_format()
        self._drop_unused_col()
        samples = self.inter_feat
        parts = split_rows(self.config, samples, self._target_time, self._target_file)
        splits = [self.copy(samples.select(rows)) for rows in parts]
        for split, rows in zip(splits, parts, strict=True):
            split._target_time = None if self._target_time is None else self._target_time[rows]
        return splits

    def target_age(self) -> np.ndarray | None:
        """Days from the end of training to each target, (n,) float64; None unless the split is by time, in seconds."""
        times = cut_offs(self.config["eval_args"])
        if not times or self._target_time is None or self.benchmark_filename_list:
            return None
        return (self._target_time - times[0]) / SECONDS_PER_DAY

    def history_lengths(self, index: Rows) -> np.ndarray:
        """Interactions before the target of each row, not truncated: (n,) int64."""
        return self.inter_feat.history_lengths(index)

    def statistics(self) -> dict[str, int | float]:
        """Users, items, interactions (or samples, of files that list histories), mean_length per user, sparsity."""
        flat, n = self.inter_feat.flat, self.inter_num
        fields = {self.uid_field: self.user_num, self.iid_field: self.item_num}
        users, items = (int(np.count_nonzero(count(flat.columns[name].numpy(), size))) for name, size in fields.items())
        of_pairs = {"mean_length": n / users, "sparsity": 1 - n / (users * items)}
        return {"users": users, "items": items, "interactions": n, **of_pairs}

    def feature_checksums(self) -> dict[str, str]:
        """SHA-256 of the .user and .item files that are read, by name."""
        return {path.name: file_digest(path) for path in feature_paths(self.config)}

    @property
    def item_ids(self) -> list[str]:
        """The vocabulary: item ids by number, the padding item included."""
        return [str(token) for token in self.field2id_token[self.iid_field]]

    def checksum(self) -> str:
        """SHA-256 of the .inter file, in hexadecimal; of several files, that of their checksums."""
        several = len(self._sha256) > 1
        return hashlib.sha256("".join(self._sha256).encode()).hexdigest() if several else self._sha256[0]

    @property
    def inter_num(self) -> int:
        """Interactions left after filtering."""
        if (flat := getattr(self.inter_feat, "flat", None)) is None:
            return len(self.inter_feat)  # a table, before it is flattened
        return int(flat.user_start[-1]) if flat.segment is None else len(flat.user_start) - 1

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
