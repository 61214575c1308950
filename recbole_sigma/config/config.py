"""Config: RecBole's, with our properties/, checked values, and unknown names refused.

From weak to strong: RecBole's defaults, properties/overall.yaml, the model's defaults (after those of its base
classes), properties/dataset/<name>.yaml, config files in their order, settings such as the command line's.
"""

import copy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config as RecBoleConfig
from recbole.utils import InputType

from recbole_sigma.config.early import WITHOUT_DEFAULT, check_dataset, data_folder, read_run, unknown_setting
from recbole_sigma.config.schema import check, identity, role
from recbole_sigma.config.values import (
    Files,
    Given,
    SettingsLoader,
    all_settings,
    properties_path,
    read_defaults,
    recbole_path,
)
from recbole_sigma.errors import UserError, did_you_mean
from recbole_sigma.registry import find_model, model_name
from recbole_sigma.runs.files import weights_digest

__all__ = ["Config", "properties_path"]

_ONE_UNIFORM_SAMPLE = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
_SAMPLED_LOSSES = ("BPR", "BCE")
_OUR_LOSSES = ("recbole_sigma.model.sequence", "recbole_sigma.model.by_length", "recbole_sigma.model.bert4rec")


class Config(RecBoleConfig):
    """The settings of one run; never looks at `sys.argv` and never evaluates text. Two configs share nothing."""

    parameters: dict[str, list[str]]

    def __init__(
        self,
        model: str | type,
        dataset: Any,
        config_files: Files = (),
        settings: Mapping[str, Any] | None = None,
        *,
        need_data: bool = True,
    ) -> None:
        """Raises UserError for a wrong name, value, file, model or data set.

        Args:
            model: the class, or a name that `find_model` knows.
            dataset: a directory in `data_path`, or a name of `recbole-sigma datasets`, which is downloaded if it is
                missing; or a pandas, polars or pyarrow table, which is written to `checkpoint_dir`/data (columns are
                guessed as by `convert`).
            config_files: YAML files; a later one wins, and `settings` win over all.
            need_data: refuse a data set that does not exist. False for a checkpoint that is served without its data.
        """
        given = all_settings(config_files, settings or {})
        if not isinstance(dataset, str):
            dataset, given["data_path"] = _stored(dataset, given)
        if dataset or need_data:
            check_dataset(dataset)
        self.model_class = find_model(model)
        self.model, self.dataset = self.model_class.__name__, dataset
        self._choices: Mapping[str, tuple[Any, ...]] = getattr(self.model_class, "choices", {})

        # The steps of RecBole's __init__, without its readings of files and of the command line.
        self.compatibility_settings()
        self._init_parameters_category()
        # RecBole adds to these lists, which are its module's own, and so to every later config.
        self.parameters = {category: list(names) for category, names in self.parameters.items()}
        self.yaml_loader = SettingsLoader
        self._load_internal_config_dict(self.model, self.model_class, dataset)
        self._default_to(given)
        self._settings = self._merge(given)
        self.final_config_dict = {**self.internal_config_dict, **self.settings(), "model": self.model}
        self._set_default_parameters()
        self._set_train_neg_sample_args()
        self._set_eval_neg_sample_args("valid")
        self._set_eval_neg_sample_args("test")

        self._check_together(given)
        if self["loss_type"] in _SAMPLED_LOSSES:
            self["MODEL_INPUT_TYPE"] = InputType.PAIRWISE  # RecBole knows BPR only
        data_path = Path(self._settings["data_path"])
        folder = data_folder(dataset, data_path, self["download"]) if need_data else data_path / dataset
        self["data_path"] = str(folder)
        gpus = self["gpu_id"] if isinstance(self["gpu_id"], list) else str(self["gpu_id"]).split(",")
        self["gpu_id"] = ",".join(str(gpu).strip() for gpu in gpus)
        self.final_config_dict.update(single_spec=True, local_rank=0, device=self._device(str(gpus[0]).strip()))

    def settings(self) -> dict[str, Any]:
        """Every setting as a plain YAML value: given as a config file, they repeat the run."""
        return copy.deepcopy(self._settings)

    def members(self) -> Iterator["Config"]:
        """Of each member of an Ensemble, without its own head and table. Raises UserError for another version's run."""
        for member in self.final_config_dict.get("member_settings") or ():
            settings = {**member, "use_gpu": self["use_gpu"], "head": "plain", "co_occurrence": 0}
            name, trained_on, _ = (settings.pop(key) for key in ("model", "dataset", "digest"))
            if ":" in name or name == "Ensemble":
                what = "an ensemble: write its members" if name == "Ensemble" else "code of its own, which is not run"
                raise UserError(f"members: {name} is {what}")
            try:
                yield Config(name, trained_on, settings=settings, need_data=False)
            except UserError as error:
                raise UserError(f"members: a run of {name}: {error}") from None

    def __getitem__(self, name: str) -> Any:
        """The value of a setting. RecBole answers None for a name that does not exist, on which its models rely.

        Raises UserError for such a name if the model is built on our base class.
        """
        ours = any(base.__module__ == "recbole_sigma.model.sequence" for base in self.model_class.__mro__)
        if ours and name not in self.final_config_dict and name not in WITHOUT_DEFAULT:
            default = f"; its default belongs into {self.model}.yaml, beside the module of the class"
            hint = did_you_mean(name, self.final_config_dict) or default
            raise UserError(f"{self.model} reads the setting {name!r}, which does not exist{hint}")
        return super().__getitem__(name)

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        ours = properties_path()
        # RecBole's file of the model once more: RecBole reads it before its own defaults of sequential models.
        files = (ours / "overall.yaml", *model_files(model_class), ours / "dataset" / f"{dataset}.yaml")
        for file in filter(Path.is_file, files):
            for name, given in read_defaults([file]).items():
                if not file.is_relative_to(recbole_path()):
                    # A model's file declares the model's settings, with any value.
                    default = given.value if role(name) == "model" else self.internal_config_dict.get(name)
                    check(name, given, default, self._choices)
                self.internal_config_dict[name] = given.value

    def _default_to(self, given: dict[str, Given]) -> None:
        """Model settings default to those of the run `init_from`, and `init_digest` is that of its weights.

        Where the digest is given, as by config.yaml of a run, the settings are, too. So is that of `distill_from`, and
        `member_settings` are those of the runs `members`.
        """
        teacher = given.get("distill_from", Given(None))
        if teacher.value is not None and "distill_digest" not in given:
            check("distill_from", teacher, None, {})
            read_run(teacher, "distill_from")
            given["distill_digest"] = Given(weights_digest(Path(teacher.value, "model.safetensors"))[:16])
        members = given.get("members", Given(None))
        if members.value is not None and "member_settings" not in given:
            check("members", members, None, {})
            given["member_settings"] = Given([_member(Given(run, members.origin)) for run in members.value])
        start = given.get("init_from", Given(None))
        if start.value is None or "init_digest" in given:
            return
        check("init_from", start, None, {})
        saved = read_run(start)
        if (name := saved["model"].value) != model_name(self.model_class):
            raise start.error(f"init_from: {start.value} is a run of {name}, not of {model_name(self.model_class)}")
        shared = {name for name in saved if role(name) == "model"} & {*self.internal_config_dict}
        self.internal_config_dict.update({name: saved[name].value for name in shared})
        given["init_digest"] = Given(weights_digest(Path(start.value, "model.safetensors"))[:16])

    def _merge(self, given: Mapping[str, Given]) -> dict[str, Any]:
        """The settings of the run: the defaults and what was given. Refuses unknown names and wrong values."""
        defaults = self.internal_config_dict
        known = ({*defaults} | WITHOUT_DEFAULT | {"model", "dataset"}) - {"MODEL_TYPE"}
        for name, value in given.items():
            if name not in known:
                raise value.error(unknown_setting(name, self.model, known))
            check(name, value, defaults.get(name), self._choices)
        merged = {**defaults, **{name: value.value for name, value in given.items()}}
        del merged["MODEL_TYPE"]
        merged.update(model=model_name(self.model_class), dataset=self.dataset)
        # RecBole replaces the whole mapping: `eval_args: {mode: uni100}` would bring a random split with it.
        merged["eval_args"] = {**defaults["eval_args"], **merged["eval_args"]}
        sampled = merged["loss_type"] in _SAMPLED_LOSSES
        if hasattr(self.model_class, "input_type"):
            sampled = self.model_class.input_type == InputType.PAIRWISE
        elif not sampled and merged["train_neg_sample_args"] is not None:
            right = f"null with loss_type {merged['loss_type']}, which samples no items"
            raise UserError(f"train_neg_sample_args must be {right}, got {merged['train_neg_sample_args']}")
        if sampled and merged["train_neg_sample_args"] is None:
            merged["train_neg_sample_args"] = _ONE_UNIFORM_SAMPLE
        if merged["train_mode"] == "auto":
            model_class: Any = self.model_class
            one_pass = self._has_our_loss(merged) and not model_class.sequence_problem(merged)
            one_pass = one_pass and (merged["train_neg_sample_args"] or _ONE_UNIFORM_SAMPLE)["sample_num"] == 1
            merged["train_mode"] = "sequence" if one_pass else "prefix"
        return copy.deepcopy(merged)

    def _has_our_loss(self, settings: Mapping[str, Any]) -> bool:
        """Whether the loss is that of our base classes, not of a class of RecBole's or the user's own."""
        model_class: Any = self.model_class
        return model_class.calculate_loss.__module__ in _OUR_LOSSES and settings.get("by_length", True)

    def _check_together(self, given: Mapping[str, Given]) -> None:
        """Refuse settings that are right alone and wrong together."""
        heads, size = (self.final_config_dict.get(name) for name in ("n_heads", "hidden_size"))
        if heads and size and size % heads:
            raise UserError(f"n_heads must divide hidden_size, {size}, got {heads}")
        if self["warmup_epochs"] and self["warmup_epochs"] >= self["epochs"]:
            raise UserError(f"warmup_epochs must be less than epochs, {self['epochs']}, got {self['warmup_epochs']}")
        for name, default in (("label_smoothing", 0), ("cosine_temperature", None), ("distill_from", None)):
            if (value := self[name]) == default:
                continue
            right = f"{name} must be {'null' if default is None else default}"
            if self["loss_type"] != "CE":
                raise UserError(f"{right} with loss_type {self['loss_type']}: it belongs to CE, got {value}")
            if name == "distill_from" and any(base.__name__ == "BERT4Rec" for base in self.model_class.__mro__):
                raise UserError(f"{right} for {self.model}, whose targets are items within a history, got {value}")
            if not self._has_our_loss(self.final_config_dict):
                raise UserError(f"{right} for {self.model}, whose own class computes the loss, got {value}")
        fitted = getattr(self.model_class, "fits_at_once", False)
        if self["co_occurrence"] and fitted and not hasattr(self.model_class, "factors"):
            raise UserError(f"co_occurrence must be 0 for {self.model}, whose scores are no softmax")
        if self["distill_from"] and self["label_smoothing"]:
            raise UserError("label_smoothing must be 0 with distill_from, whose teacher takes that part of the weight")
        metric, available = self["valid_metric"], [f"{name}@{k}" for name in self["metrics"] for k in self["topk"]]
        if metric.lower() not in map(str.lower, available):
            right = f"valid_metric must be one of {', '.join(available)} (metrics and topk)"
            raise given.get("valid_metric", Given(metric)).error(f"{right}, got {metric!r}")
        fields: dict[str, str] = {}
        for name in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
            other = fields.setdefault(self[name] or name, name)
            if other != name:
                raise UserError(f"{other} and {name} must name different columns, got {self[name]!r} for both")

    def _device(self, gpu_id: str) -> torch.device:
        """The CPU if `use_gpu` is false or there is no GPU; else the GPU of that number among those torch sees.

        RecBole looks at gpu_id only, and overwrites the CUDA_VISIBLE_DEVICES that the user has set.
        """
        if not self["use_gpu"] or not gpu_id or not torch.cuda.is_available():
            return torch.device("cpu")
        gpus = [str(number) for number in range(torch.cuda.device_count())]
        if gpu_id not in gpus:
            raise UserError(f"gpu_id must be one of {', '.join(gpus)}, the GPUs that torch sees, got {gpu_id!r}")
        if int(gpu_id) == 0:
            return torch.device("cuda")
        torch.cuda.set_device(int(gpu_id))  # kernels outside torch run on the current device
        return torch.device("cuda", int(gpu_id))


def _member(run: Given) -> dict[str, Any]:
    """What determines the model of a run: its settings, and the digest of its weights."""
    saved = identity({name: given.value for name, given in read_run(run, "members").items()})
    return {**saved, "digest": weights_digest(Path(str(run.value), "model.safetensors"))[:16]}


def _stored(frame: Any, given: Mapping[str, Given]) -> tuple[str, Given]:
    """Name and data_path of the data set that a table of interactions has become."""
    from recbole_sigma.convert.frames import store

    checkpoints = given.get("checkpoint_dir", Given("saved"))
    check("checkpoint_dir", checkpoints, "saved", {})
    folder = Path(checkpoints.value, "data")
    return store(frame, folder), Given(str(folder))


def model_files(model_class: type) -> Iterator[Path]:
    """Where the defaults of a model may be, from weak to strong: those of its base classes come first."""
    for base in reversed(model_class.__mro__):
        folders = [recbole_path() / "properties" / "model", properties_path() / "model"]
        if module := getattr(sys.modules.get(base.__module__), "__file__", None):  # None in a notebook
            folders.append(Path(module).parent)
        yield from (folder / f"{base.__name__}.yaml" for folder in folders)
