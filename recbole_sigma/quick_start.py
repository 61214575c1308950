"""run(): one training run, from settings to a folder with its result; resume(): the rest of one that was ended."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from recbole.utils import init_seed

from recbole_sigma.capacity import build_model, memory_told
from recbole_sigma.config.config import Config
from recbole_sigma.config.values import read_config_file
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.evaluation.metrics import METRICS, metrics_of_ranks
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops import CudaExtensionError, active_backend
from recbole_sigma.ops.cuda import MOST_STATES
from recbole_sigma.registry import find_model
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.result import RunResult, data_facts, result_of
from recbole_sigma.training import distributed
from recbole_sigma.training.allocator import keep_freed_memory
from recbole_sigma.training.callbacks import Callback
from recbole_sigma.training.checkpoint import Progress
from recbole_sigma.training.distributed import ALONE, Group, Plan
from recbole_sigma.training.trainer import SequenceTrainer

__all__ = ["RunResult", "resume", "run"]

# Settings that a resumed run may be given anew: where things are, how fast they go, and when training ends.
MAY_CHANGE = (
    "data_path", "checkpoint_dir", "show_progress", "state", "threads", "use_gpu", "gpu_id", "eval_batch_size",
    "epochs", "stopping_step", "ip", "port",
)  # fmt: skip

# Settings by which RecBole writes and reads pickles.
_PICKLES = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path", "pre_model_path")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What to train; `folder` is that of a run to resume. Without `test` it is a trial of a sweep."""

    model: str | type
    dataset: str
    config_files: Sequence[str | Path]
    settings: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    callbacks: Sequence[Callback] = ()
    test: bool = True

    def config(self) -> Config:
        return Config(self.model, self.dataset, config_files=self.config_files, settings=self.settings)


def run(
    model: str | type,
    dataset: str,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> RunResult:
    """Train one model on one data set, choose the epoch on validation, evaluate test once, write the run's folder.

    Args:
        model: a name that `registry.find_model` knows, or a class.
        dataset: a folder in `data_path`, or `ml-100k`.
        config_files: YAML files of settings.
        settings: settings by name; they win over the files.
        callbacks: called after each epoch.
        test: False for a trial of a sweep: test is not evaluated.

    Raises:
        UserError: for settings, data or a training that cannot be right.
        Interrupted: for Ctrl-C once the folder is there.
    """
    return _start(_Job(model, dataset, config_files, dict(settings or {}), None, callbacks, test))


def resume(
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    model: type | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> RunResult:
    """Go on with a run that was ended, after its last complete epoch; on CPU to the last bit as if it had not been.

    Args:
        folder: the run's; that of a complete run gives its result.
        settings: those of MAY_CHANGE, by name.
        model: the class, where the registry does not know it.
        callbacks: called after each further epoch.
        test: False for a trial of a sweep. A trial that is resumed with True is tested, with its best epoch's weights.

    Raises:
        UserError: for a folder that cannot be resumed, and for data or settings that are not the run's.
        Interrupted: for Ctrl-C.
    """
    folder, settings = Path(folder), dict(settings or {})
    if not folder.is_dir():
        raise UserError(f"resume: there is no folder {str(folder)!r}")
    RunFolder(folder, lock=False)
    file = folder / "config.yaml"
    saved = {key: given.value for key, given in read_config_file(file).items()}
    _check_changes(file, saved, settings)
    try:
        model = model or find_model(saved["model"])
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if (folder / "result.json").exists():
        for key in ("epochs", "stopping_step"):
            if settings.get(key, saved.get(key)) != saved.get(key):
                raise UserError(f"{key}: {folder} is complete, its test seen; train anew to train longer")
        result = RunFolder(folder, lock=False).read_json("result.json", dict)
        if not test or not result.get("trial"):
            return _finished(folder, result)
    return _start(_Job(model, saved["dataset"], [file], settings, folder, callbacks, test))


def _check_changes(file: Path, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a file that names no run, and settings that would make it another run."""
    for key in ("model", "dataset"):
        if not isinstance(saved.get(key), str):
            raise UserError(f"{file}: {key} must be a name, got {saved.get(key)!r}")
    for key, value in settings.items():
        if key not in MAY_CHANGE and (key not in saved or saved[key] != value):
            kept = f"a resumed run keeps its settings, but for {', '.join(MAY_CHANGE)}"
            raise UserError(f"{key} is {saved.get(key)!r} in {file}, got {value!r}; {kept}")


def _finished(folder: Path, result: Mapping[str, Any]) -> RunResult:
    """The result of a complete run, of which every number must follow from its ranks."""
    try:
        named = ("valid",) if result.get("trial") else ("valid", "test")
        best_epoch, parts = int(result["best_epoch"]), {part: dict(result[part]) for part in named}
        topk = sorted({int(str(name).partition("@")[2]) for name in parts["valid"]})
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{folder / 'result.json'}: not the result of a run") from None
    for part, metrics in parts.items():
        if metrics != metrics_of_ranks(Ranks.load(folder / f"ranks-{part}.npz").rank, topk):
            raise UserError(f"{folder / 'result.json'}: {part} is not what ranks-{part}.npz gives")
    return RunResult(folder, best_epoch, parts["valid"], parts.get("test", {}))


def _start(job: _Job) -> RunResult:
    """In this process, in as many as `nproc` says, or as one of torchrun's."""
    if distributed.by_torchrun():
        return _train_in_group(int(os.environ["LOCAL_RANK"]), None, lambda _: None, job)
    config = job.config()
    if config["nproc"] == 1 and (config["world_size"] or 1) <= 1:
        with memory_told(config):
            return _train(config, job, ALONE)
    try:
        return RunResult(**distributed.launch(Plan.of(config), _train_in_group, job)[-1])
    except distributed.EndedError as ended:
        _raise_ended(ended)


def _raise_ended(ended: distributed.EndedError) -> NoReturn:
    folder = ended.answers[0] if ended.answers else None
    if str(ended) == "interrupted":
        raise Interrupted(folder) if folder else KeyboardInterrupt
    hint = f"; go on with --resume={folder}" if folder else ""
    raise UserError(f"nproc: {ended}{hint}")


def _train_in_group(local_rank: int, plan: Plan | None, report: Callable[[Any], None], job: _Job) -> RunResult:
    config = job.config()
    group = distributed.join(config, local_rank, plan)
    with memory_told(config):
        result = _train(config, job, group, report)
    if local_rank == 0:
        report(vars(result))
    distributed.leave()
    return result


def _train(config: Config, job: _Job, group: Group, report: Callable[[Any], None] = lambda _: None) -> RunResult:
    started = time.time()
    backend = _prepare(config, group)
    data = create_dataset(config)
    train_data, valid_data, test_data = _loaders(config, data, group)
    network = build_model(config, train_data.dataset)
    if config["device"].type == "cuda":
        torch.cuda.reset_peak_memory_stats(config["device"])  # that of a run before in this process
    group.copy_from_first(network)
    folder = _folder(config, job, group, [str(token) for token in data.field2id_token[data.iid_field]])
    with _told(folder):
        report(folder.path)
        logger.info("%s on %s: %s", config.model, config.dataset, data.statistics())
        computed_by = f"computed by {backend}, {torch.get_num_threads()} threads"
        logger.info("device %s, %s; folder %s", config["device"], computed_by, folder.path)
        facts = data_facts(data)
        trainer = SequenceTrainer(config, network, folder, group)
        if group.rank:
            init_seed(config["seed"] + group.rank, config["reproducibility"])  # dropout of its own
        progress = Progress(trainer, train_data, {**facts, **_fixed(config)}, started)
        if job.folder:
            progress.restore()
        trainer.fit(train_data, valid_data, _after_epoch(progress, trainer, job.callbacks))
        metrics = _evaluate(trainer, {"valid": valid_data, "test": test_data} if job.test else {"valid": valid_data})
        if group.first:
            result = result_of(config, facts, trainer, metrics) | ({} if job.test else {"trial": True})
            folder.write_json("result.json", {**result, "backend": backend, **progress.times()})
    return RunResult(folder.path, trainer.best.epoch, metrics["valid"], metrics.get("test", {}))


def _after_epoch(progress: Progress, trainer: SequenceTrainer, callbacks: Sequence[Callback]) -> Callable[[], None]:
    """Save a complete epoch, then call the callbacks with its row."""

    def save() -> None:
        progress.save()
        if trainer.group.first:
            for callback in callbacks:
                callback.on_epoch_end(trainer.rows[-1])

    return save


def _prepare(config: Config, group: Group) -> str:
    """Set the process up as the settings say; the name of what computes scans."""
    _log_to_terminal(config["state"] if group.first else "ERROR")
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    keep_freed_memory()
    _check_settings(config)
    backend = _backend(config)
    init_seed(config["seed"], config["reproducibility"])
    return backend


def _loaders(config: Config, data: Any, group: Group) -> tuple[Any, ...]:
    """Training, validation and test, this process's share of each. Raises UserError where one is empty."""
    loaders = data_preparation(config, data)
    for part, loader in zip(("training", "validation", "test"), loaders, strict=True):
        if not len(loader.dataset):
            raise UserError(f"{data.dataset_name}: nothing is left for {part}; some user must have 4 interactions")
        loader.shard(group.rank, group.size)
    return loaders


@contextmanager
def _told(folder: RunFolder) -> Iterator[None]:
    """What ends a run in its folder is told with the folder's name; the folder is another process's afterwards."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(folder.path) from None
    except OSError as error:  # of TensorBoard's file; others are told where they arise
        raise UserError(f"{folder.path}: cannot be written: {error.strerror or error}") from None
    finally:
        folder.close()


def _folder(config: Config, job: _Job, group: Group, items: list[str]) -> RunFolder:
    """The first process's folder, a new one or the job's, for all."""
    path = job.folder
    if group.first and path is None:
        folder = RunFolder.create(config["checkpoint_dir"], config.model, config.dataset, config.settings(), items)
        group.gather(folder.path)
        return folder
    path = group.gather(path)[0]
    folder = RunFolder(path, lock=group.first)
    if job.folder:
        _check_items(folder, items)
        if group.first:
            folder.write_yaml("config.yaml", config.settings())
    return folder


def _check_items(folder: RunFolder, items: list[str]) -> None:
    """Refuse data with other items than those that the run began with."""
    before = folder.read_json("items.json", list)
    if before == items:
        return
    path = folder.path / "items.json"
    if len(before) != len(items):
        raise UserError(f"{path}: has {len(before) - 1} items, the data {len(items) - 1}; other data than the run's")
    place = next(place for place, pair in enumerate(zip(before, items, strict=True)) if pair[0] != pair[1])
    raise UserError(
        f"{path}: item {place} is {before[place]!r}, in the data {items[place]!r}; it is not the run's data"
    )


def _fixed(config: Config) -> dict[str, Any]:
    """The settings that a resumed run must share with what it goes on from."""
    return {key: value for key, value in config.settings().items() if key not in MAY_CHANGE}


def _evaluate(trainer: SequenceTrainer, loaders: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics of the best epoch on each part, and its files of ranks; test is ranked for the first time here."""
    metrics = {}
    for part, loader in loaders.items():
        ranks = trainer.ranks(loader, part)
        if trainer.group.first:
            trainer.folder.write_arrays(f"ranks-{part}.npz", ranks.arrays())
        metrics[part] = metrics_of_ranks(ranks.rank, trainer.topk)
    return metrics


def _check_settings(config: Config) -> None:
    """Refuse a metric that is not computed from ranks, and files that would be unpickled."""
    for name in config["metrics"]:
        if name.lower() not in METRICS:
            raise UserError(
                f"metrics must be among Hit, NDCG, MRR, got {name!r} (with one target a user, Recall is Hit)"
            )
    for name in _PICKLES:
        if config[name]:
            raise UserError(f"{name}: RecBole's files are pickles, which can execute code; leave it out")


def _backend(config: Config) -> str:
    """What does the scans of our models; those without one, and RecBole's own, need torch only."""
    states = config["d_state"]
    if not issubclass(config.model_class, SequenceModel) or states is None:
        return "torch"
    if config["device"].type == "cuda" and states > MOST_STATES:
        raise UserError(f"d_state must be at most {MOST_STATES} on a GPU, got {states}; or run on CPU: use_gpu=False")
    try:
        return active_backend(config["device"])
    except CudaExtensionError as error:
        raise UserError(" ".join(str(error).split())) from None


def _log_to_terminal(level: str) -> None:
    """One handler for our messages; RecBole's own chatter stays at warnings and above."""
    ours = logging.getLogger("recbole_sigma")
    ours.setLevel(level.upper())
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.propagate = False
