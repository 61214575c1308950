"""Config: RecBole's, plus our properties/, with values checked and unknown names refused.

From weak to strong: RecBole's defaults, properties/overall.yaml, RecBole's and our properties/model/<Model>.yaml,
properties/dataset/<data set>.yaml, config files in their order, settings (the command line's, for one).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import recbole
import torch
from recbole.config import Config as RecBoleConfig
from recbole.utils import InputType

from recbole_sigma.config.schema import check
from recbole_sigma.config.values import (
    Given,
    SettingsLoader,
    parse_overrides,
    plain,
    properties_path,
    read_config_file,
    read_config_files,
)
from recbole_sigma.errors import UserError, did_you_mean
from recbole_sigma.registry import find_model

__all__ = ["Config", "parse_overrides", "properties_path", "read_config_files"]

_RECBOLE = Path(recbole.__file__).parent

# Settings that RecBole's code reads and none of its files names.
_WITHOUT_DEFAULT = {
    "encoding", "tail_ratio", "reg_weight", "contrast", "sim", "tau", "use_filter",
    "world_size", "offset", "ip", "port",
}  # fmt: skip
_ONE_UNIFORM_SAMPLE = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
_SAMPLED_LOSSES = ("BPR", "BCE")
_KEYS_INSIDE = {
    "eval_args": ("split", "order", "group_by", "mode"),
    "train_neg_sample_args": tuple(_ONE_UNIFORM_SAMPLE),
}


def _check_dataset_name(name: str) -> None:
    """It is a folder in data_path, begins names of files, and stands in the name of the run's folder."""
    if not name or not name.isprintable() or name in (".", "..") or {"/", "\\"} & {*name} or len(name.encode()) > 100:
        raise UserError(f"dataset must be the name of a folder in data_path, of at most 100 bytes, got {name!r}")


@contextmanager
def _recbole_refusals(setting: str) -> Iterator[None]:
    """RecBole's own checks of settings, as UserErrors of one line; `setting` is what those without a name are about."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        message = " ".join(str(error).split())
        named = any(name in message for name in (setting, "train_neg_sample_args", "repeatable", "topk", "eval_args"))
        raise UserError(message if named else f"{setting}: {message}") from None


def check_together(settings: Mapping[str, Any]) -> None:
    """Raise a UserError for settings that are right alone and wrong together."""
    n_heads, hidden_size = settings.get("n_heads"), settings.get("hidden_size")
    if isinstance(n_heads, int) and isinstance(hidden_size, int) and hidden_size % n_heads:
        raise UserError(f"n_heads must divide hidden_size, {hidden_size}, got {n_heads}")
    # A batch holds columns under these names and names made from them: two of one name would be one column.
    names: dict[str, str] = {}
    item, suffix = settings["ITEM_ID_FIELD"] or "", settings["LIST_SUFFIX"]
    for setting, name in {
        **{key: settings[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "ITEM_LIST_LENGTH_FIELD")},
        "LIST_SUFFIX": f"{item}{suffix}",
        "NEG_PREFIX": f"{settings['NEG_PREFIX']}{item}",
    }.items():
        if name and name in names:
            raise UserError(f"{names[name]} and {setting} both make a column {name!r}; give them different names")
        names[name] = setting


def _as_interval(given: Given) -> Given:
    """`[5, 40]` is a list in YAML, and an interval to whoever writes it."""
    value = given.value
    if isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value):
        return Given(f"[{value[0]},{value[1]}]", given.origin)
    return given


class Config(RecBoleConfig):
    """The settings of one run; read as RecBole's Config, `config["learning_rate"]`.

    Never looks at `sys.argv`. Two configs share nothing. Raises UserError for whatever a user can have got wrong.
    """

    parameters: dict[str, list[str]]

    def __init__(
        self,
        model: str | type,
        dataset: str,
        config_files: Sequence[str | Path] = (),
        settings: Mapping[str, Any] | None = None,
        *,
        need_data: bool = True,
    ) -> None:
        """
        Args:
            model: the class, or a name that `find_model` knows.
            dataset: a folder in `data_path`, or `ml-100k`, which RecBole's wheel brings along.
            config_files: YAML files; a later one wins.
            settings: settings by name; they win over the files.
            need_data: refuse a data set that is not there. False for a checkpoint served without its data.
        """
        self._given = read_config_files(config_files)
        for key, value in (settings or {}).items():
            try:
                self._given[key] = Given(plain(value))
            except TypeError as error:
                raise UserError(f"{key} must be a plain value (number, text, list, mapping), got a {error}") from None
        for key in ("user_inter_num_interval", "item_inter_num_interval"):
            if key in self._given:
                self._given[key] = _as_interval(self._given[key])
        self._need_data = need_data
        if need_data or dataset:
            _check_dataset_name(dataset)
        super().__init__(model=find_model(model) if isinstance(model, str) else model, dataset=dataset)

    def settings(self) -> dict[str, Any]:
        """Every setting as a plain YAML value: given back as a config file, they repeat the run."""
        return copy.deepcopy(self._settings)

    # What follows overrides the steps of RecBole's __init__, in the order in which it takes them.

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole adds to these lists, which are its module's own, and so to every later config.
        self.parameters = {category: list(keys) for category, keys in self.parameters.items()}

    def _build_yaml_loader(self) -> type[SettingsLoader]:
        return SettingsLoader

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}  # RecBole reads sys.argv here, whoever calls

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        ours = properties_path()
        files = (
            ours / "overall.yaml",
            _RECBOLE / "properties" / "model" / f"{model}.yaml",  # once more: FPMC, for one, knows no loss but BPR
            ours / "model" / f"{model}.yaml",
            ours / "dataset" / f"{dataset}.yaml",
        )
        for file in files:
            if file.is_file():
                self.internal_config_dict.update({key: each.value for key, each in read_config_file(file).items()})

    def _get_final_config_dict(self) -> dict[str, Any]:
        defaults = self.internal_config_dict
        self._refuse_unknown()
        choices = getattr(self.model_class, "choices", {})
        for key, given in self._given.items():
            check(key, given, defaults.get(key), choices)

        merged = copy.deepcopy({**defaults, **{key: given.value for key, given in self._given.items()}})
        merged.update(model=self.model, dataset=self.dataset)
        check_together(merged)
        # RecBole replaces a mapping whole: `eval_args: {mode: uni100}` would bring a random split with it.
        merged["eval_args"] = {**defaults["eval_args"], **merged["eval_args"]}
        if merged["train_neg_sample_args"] is None and self._wants_negatives(merged):
            merged["train_neg_sample_args"] = dict(_ONE_UNIFORM_SAMPLE)
        self._settings = {key: value for key, value in merged.items() if key != "MODEL_TYPE"}
        return copy.deepcopy(merged)

    def _set_default_parameters(self) -> None:
        data_path = self.final_config_dict["data_path"]
        with _recbole_refusals("metrics"):
            super()._set_default_parameters()
        if self.final_config_dict.get("loss_type") in _SAMPLED_LOSSES:
            self.final_config_dict["MODEL_INPUT_TYPE"] = InputType.PAIRWISE  # RecBole knows BPR only
        self._check_valid_metric()
        folder = self._data_folder(Path(data_path))
        self.final_config_dict["data_path"] = str(folder)

    def _init_device(self) -> None:
        """RecBole looks at gpu_id alone, and writes it over the CUDA_VISIBLE_DEVICES that the user has set."""
        gpu = self.final_config_dict["gpu_id"]
        gpu_ids = [part.strip() for part in (",".join(map(str, gpu)) if isinstance(gpu, list) else str(gpu)).split(",")]
        self.final_config_dict["gpu_id"] = ",".join(gpu_ids)
        self.final_config_dict.update(single_spec=True, local_rank=0, device=self._device(gpu_ids[0]))

    def _set_train_neg_sample_args(self) -> None:
        with _recbole_refusals("train_neg_sample_args"):
            super()._set_train_neg_sample_args()

    def _set_eval_neg_sample_args(self, phase: Literal["valid", "test"]) -> None:
        with _recbole_refusals("eval_args"):
            super()._set_eval_neg_sample_args(phase)

    # Our own steps.

    def _refuse_unknown(self) -> None:
        known = {*self.internal_config_dict, *_WITHOUT_DEFAULT, "model", "dataset"}.union(*self.parameters.values())
        known -= {"MODEL_TYPE", "config_file"}
        for key, given in self._given.items():
            if key not in known:
                raise given.error(f"unknown setting {key!r}{did_you_mean(key, known)}")
            for inner in given.value if key in _KEYS_INSIDE and isinstance(given.value, dict) else ():
                if inner not in _KEYS_INSIDE[key]:
                    raise given.error(f"unknown {inner!r} in {key}{did_you_mean(str(inner), _KEYS_INSIDE[key])}")

    def _wants_negatives(self, merged: Mapping[str, Any]) -> bool:
        """Whether the model's loss compares an item with one that was not chosen."""
        if hasattr(self.model_class, "input_type"):
            return bool(self.model_class.input_type == InputType.PAIRWISE)
        return merged.get("loss_type") in _SAMPLED_LOSSES

    def _check_valid_metric(self) -> None:
        metrics, lengths = self.final_config_dict["metrics"], self.final_config_dict["topk"]
        right = [f"{metric}@{k}" for metric in metrics for k in lengths]
        wrong = self.final_config_dict["valid_metric"]
        if wrong.lower() not in (each.lower() for each in right):
            given = self._given.get("valid_metric", Given(wrong))
            there = ", ".join(right)
            raise given.error(f"valid_metric must be one that metrics and topk give ({there}), got {wrong!r}")

    def _data_folder(self, data_path: Path) -> Path:
        """The data set's folder. ml-100k is RecBole's own copy, unless `data_path` has one."""
        name = self.dataset
        folder = data_path / name
        if name == "ml-100k" and not folder.is_dir():
            return _RECBOLE / "dataset_example" / name
        if self._need_data and not (name and folder.is_dir()):  # where RecBole would begin to download
            self._refuse_dataset(data_path)
        return folder

    def _refuse_dataset(self, data_path: Path) -> NoReturn:
        there = [each.name for each in data_path.iterdir() if each.is_dir()] if data_path.is_dir() else []
        raise UserError(
            f"unknown data set {self.dataset!r}: there is no folder {str(data_path / self.dataset)!r}"
            + (did_you_mean(self.dataset, [*there, "ml-100k"]) or "; --data_path=FOLDER says where data sets are")
        )

    def _device(self, gpu_id: str) -> torch.device:
        """CPU if the user says so or there is no other; else the GPU of that number among those torch sees."""
        if not self.final_config_dict["use_gpu"] or not gpu_id or not torch.cuda.is_available():
            return torch.device("cpu")
        if not gpu_id.isdecimal() or int(gpu_id) >= torch.cuda.device_count():
            raise UserError(f"gpu_id must be less than {torch.cuda.device_count()}, the GPUs here, got {gpu_id!r}")
        if int(gpu_id) == 0:
            return torch.device("cuda")
        torch.cuda.set_device(int(gpu_id))  # kernels outside torch run on the current device
        return torch.device("cuda", int(gpu_id))
