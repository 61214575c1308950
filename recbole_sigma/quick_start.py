"""run(): one training run, from settings to a run directory with its result; resume(): the rest of an interrupted one.

What trains is imported after settings and data have been accepted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.utils import init_seed

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import identity, may_change
from recbole_sigma.config.values import Files, dump_settings, read_config_file
from recbole_sigma.data.preparation import Data, load
from recbole_sigma.errors import Interrupted, UserError, one_line, out_of_memory
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops import CudaExtensionError, active_backend
from recbole_sigma.ops.cuda import MOST_STATES
from recbole_sigma.registry import build_model, find_model
from recbole_sigma.runs.files import json_text, read_json, write_text
from recbole_sigma.runs.folder import RunFolder

if TYPE_CHECKING:
    from recbole_sigma.runs.reader import LoadedRun
    from recbole_sigma.runs.result import RunResult
    from recbole_sigma.training.callbacks import Callback
    from recbole_sigma.training.distributed import Group

logger = logging.getLogger(__name__)
Metrics = dict[str, dict[str, float]]  # by split


def run(
    model: str | type,
    dataset: Any,
    config_file_list: Files = None,
    config_dict: Mapping[str, Any] | None = None,
    *,
    config_files: Files = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
    configure_process: bool = True,
) -> RunResult:
    """Train one model on one data set, choose the epoch on validation, evaluate test once, write the run directory.

    Args:
        model: a name that `registry.find_model` knows, `package.module:Class`, or a class.
        dataset: a folder in `data_path`, or a name of `recbole-sigma datasets`, which is downloaded if it is missing;
            or a table of interactions (pandas, polars, pyarrow), which is written below `checkpoint_dir` under a name
            made of its content. Its columns are guessed as by `convert`.
        config_file_list: YAML files, or the path of one; also as `config_files`.
        config_dict: settings, which win over the files; also as `settings`.
        callbacks: are called after each epoch (not with `nproc` above 1: the processes are others).
        test: False for a trial of a sweep: test is not evaluated.
        configure_process: False, for notebooks and services, leaves the log handlers, the allocator and the number of
            threads of this process as they are. The random generators are seeded in any case.

    Raises UserError for settings, data or a training that cannot be right, and Interrupted for Ctrl-C once the run
    directory exists.
    """
    if (config_file_list and config_files) or (config_dict and settings):
        raise UserError("config_files and settings are other names of config_file_list and config_dict; give one each")
    config = Config(model, dataset, config_files=config_file_list or config_files, settings=config_dict or settings)
    return _start(config, callbacks, test, None, configure_process)


def resume(
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    model: type | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
    configure_process: bool = True,
) -> RunResult:
    """Resume an interrupted run after its last complete epoch; on CPU bit for bit as if it had not been interrupted.

    Args:
        folder: the run directory; that of a finished run gives its result.
        settings: those that may change: where things are, how fast it runs, `epochs`, `stopping_step`.
        model: the class, for a run of a class that is not in a package of recbole-sigma or RecBole.
        callbacks, test, configure_process: as for `run`. A finished trial that is resumed with `test` is tested, with
            its best weights.

    Raises UserError also for a directory that cannot be resumed, and for data or settings that are not the run's.
    """
    folder, settings = Path(folder), dict(settings or {})
    if not folder.is_dir():
        raise UserError(f"resume: there is no directory {str(folder)!r}")
    file = RunFolder(folder).path / "config.yaml"
    saved = {key: given.value for key, given in read_config_file(file).items()}
    for key in ("model", "dataset"):
        if not isinstance(saved.get(key), str):
            raise UserError(f"{file}: {key} must be a name, got {saved.get(key)!r}")
    if ":" in saved["model"] and model is None and settings.get("model") != saved["model"]:
        name = saved["model"]
        raise UserError(f"{file}: model {name!r} is code outside recbole-sigma; confirm it with --model={name}")
    try:
        model_class = find_model(model or saved["model"])
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    for key, value in settings.items():
        if not may_change(key) and (key not in saved or saved[key] != value):
            raise UserError(f"{key} is {saved.get(key)!r} in {file}, got {value!r}; a resumed run keeps this setting")
    if (folder / "result.json").exists():
        for key in ("epochs", "stopping_step"):
            if settings.get(key, saved.get(key)) != saved.get(key):
                raise UserError(f"{key}: {folder} is finished, its test metrics are known; start a new run")
        if not test or not read_json(folder / "result.json", dict).get("trial"):
            from recbole_sigma.runs.reader import read_finished

            return read_finished(folder)
    config = Config(model_class, saved["dataset"], config_files=[file], settings=settings)
    return _start(config, callbacks, test, folder, configure_process)


def load_data_and_model(
    run: str | Path | RunResult, model: type | str | None = None, config_dict: Mapping[str, Any] | None = None
) -> LoadedRun:
    """Config, model, data set and the loaders for training, validation and test of a finished run, as RecBole's.

    Args:
        run: the run directory, or what `run` has returned.
        model: the class, for a run of a class that is not in a package of recbole-sigma or RecBole.
        config_dict: settings that differ here, such as `use_gpu` or `data_path`.

    Raises UserError as `runs.reader.load_run`.
    """
    from recbole_sigma.runs.reader import load_run

    return load_run(run if isinstance(run, str | Path) else run.folder, model=model, **(config_dict or {}))


def _start(
    config: Config, callbacks: Sequence[Callback], test: bool, folder: Path | None, configure: bool = True
) -> RunResult:
    """Train in this process, in as many as `nproc` says, or as one of those that torchrun has started."""
    from recbole_sigma.training import distributed

    if os.environ.keys() >= distributed.VARIABLES:
        return _train(config, distributed.join(config), callbacks, test, folder, configure)
    if config["nproc"] > 1:
        arguments = config.model_class, config.dataset, config.settings(), test, folder
        result: RunResult = distributed.launch(config["nproc"], _train_in_worker, *arguments)
        return result
    return _train(config, distributed.ALONE, callbacks, test, folder, configure)


def _train_in_worker(model: type, dataset: str, settings: dict[str, Any], test: bool, folder: Path | None) -> RunResult:
    """In a process that `launch` has started, which sets torchrun's variables."""
    return _start(Config(model, dataset, settings=settings), (), test, folder)


def _train(
    config: Config, group: Group, callbacks: Sequence[Callback], test: bool, resumed: Path | None, configure: bool
) -> RunResult:
    from recbole_sigma.runs.result import RunResult, data_metadata, result_content
    from recbole_sigma.training.callbacks import TensorBoard
    from recbole_sigma.training.checkpoint import Checkpoint
    from recbole_sigma.training.trainer import SequenceTrainer

    started = time.time()
    backend = _prepare(config, group, configure)
    with out_of_memory():
        data = load(config, group.rank, group.size)
        network = build_network(config, data, started=bool(resumed and (resumed / "state.pt").exists()))
        group.copy_from_first(network)
        with _run_folder(resumed, config, data, group) as folder:
            metadata = data_metadata(data.dataset)
            logger.info(
                "%s on %s: %s users, %s items, %s interactions, %.1f per user",
                config.model, config.dataset, *(f"{metadata[name]:,}" for name in ("users", "items", "interactions")),
                metadata["mean_length"],
            )  # fmt: skip
            threads = torch.get_num_threads()
            logger.info("%s, %s, %d threads; run directory %s", config["device"], backend, threads, folder.path)
            trainer = SequenceTrainer(config, network, group)
            if group.rank:
                init_seed(config["seed"] + group.rank, config["reproducibility"])  # dropout differs between processes
            fixed = {key: value for key, value in identity(config.settings()).items() if not may_change(key)}
            decides = {name: value for name, value in metadata.items() if name not in ("features", "candidates")}
            decides |= metadata["features"] | fixed
            checkpoint = Checkpoint(folder, trainer, data.train, decides, started)
            if resumed:
                checkpoint.restore()
                if group.first:  # now that the state agrees with them
                    write_text(folder.path / "config.yaml", dump_settings(config.settings()))
            board = TensorBoard(folder.path, len(trainer.rows), network) if group.first else None
            with closing(board) if board else nullcontext() as events:
                trainer.fit(data.train, data.valid, [checkpoint, *callbacks, events] if events else [checkpoint])
            metrics, masked = _evaluate(trainer, {"valid": data.valid, **({"test": data.test} if test else {})}, folder)
            if group.first:
                content = result_content(config, metadata, trainer.summary(), metrics)
                content |= {"seen_masked": masked} if masked else {}
                content |= {"backend": backend, **checkpoint.times()}
                write_text(folder.path / "result.json", json_text(content))  # last: now the run is complete
    tested = metrics.get("test", {})
    metric = config["valid_metric"].lower()
    return RunResult(folder.path, trainer.best.epoch, metrics["valid"], tested, metric, seen_masked=masked)


def build_network(config: Config, data: Data, started: bool = False) -> Any:
    """The model with what it begins with: weights of `init_from`, if it has not `started`, or of members; a teacher."""
    from recbole_sigma.model.ensemble import Ensemble
    from recbole_sigma.training.distillation import Teacher
    from recbole_sigma.training.ensemble import load_members
    from recbole_sigma.training.warm_start import start_from_run

    network: Any = build_model(config, data.train.dataset)
    if config["init_from"] and not started:
        start_from_run(network, config, data.train.dataset)
    if isinstance(network, Ensemble):
        load_members(network, config, data.dataset)
    if config["distill_from"]:
        network.teacher = Teacher(config, data.dataset)  # no module: not trained, not saved
    return network


def _evaluate(trainer: Any, loaders: Mapping[str, Any], folder: RunFolder) -> tuple[Metrics, Metrics]:
    """Metrics of each split, and those with seen items masked where they are known; writes the ranks."""
    from recbole_sigma.evaluation.metrics import metrics_of_ranks

    metrics: Metrics = {}
    masked: Metrics = {}
    for split, loader in loaders.items():
        metrics[split] = {}
        if len(loader.dataset):
            ranks = trainer.ranks(loader, split)
            metrics[split] = trainer.metrics(ranks, loader)
            if ranks.rank_masked is not None:
                masked[split] = metrics_of_ranks(ranks.rank_masked, trainer.topk, trainer.rank_metrics)
            if trainer.group.first:
                folder.write_ranks(split, ranks.arrays())
    return metrics, masked


def _prepare(config: Config, group: Group, configure: bool) -> str:
    """Seed the process, and set it up as the settings say; returns the name of what computes scans."""
    if configure:
        _configure_process(config, group)
    elif config["threads"]:
        raise UserError("threads: configure_process=False leaves them alone; call torch.set_num_threads yourself")
    if config["device"].type == "cuda":
        torch.cuda.reset_peak_memory_stats(config["device"])  # an earlier run of this process has set it
    init_seed(config["seed"], config["reproducibility"])
    return scan_backend(config)


def scan_backend(config: Config) -> str:
    """What computes the model's scans. Raises UserError where they cannot be computed on the device."""
    if members := [*config.members()]:
        return max(map(scan_backend, members), key="torch".__ne__)  # one for all members with a scan
    settings = config.final_config_dict
    states = settings.get("d_state", 0) if settings.get("mamba", True) else 0
    if not issubclass(config.model_class, SequenceModel) or not (states or "n_decays" in settings):
        return "torch"  # a model without a scan, or one of RecBole's own
    if config["device"].type == "cuda" and states > MOST_STATES:
        raise UserError(f"d_state must be at most {MOST_STATES} on a GPU, got {states}; or run on CPU: use_gpu=False")
    try:
        return active_backend(config["device"])
    except CudaExtensionError as error:
        raise UserError(one_line(error)) from None


def _configure_process(config: Config, group: Group) -> None:
    """Log handler, threads and allocator of this process."""
    from recbole_sigma.training import allocator

    ours = logging.getLogger("recbole_sigma")  # RecBole's own loggers stay at warnings and above
    ours.setLevel(config["state"].upper() if group.first else "ERROR")
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.propagate = False
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    allocator.keep_freed_memory()


@contextmanager
def _run_folder(resumed: Path | None, config: Config, data: Data, group: Group) -> Iterator[RunFolder]:
    """The run directory for all processes, made or checked, and locked, by the first; Ctrl-C and errors name it."""
    items = data.dataset.item_ids
    path = resumed
    if group.first and path is None:
        from recbole_sigma.data.item_info import item_info

        info = item_info(data)
        path = RunFolder.create(
            config["checkpoint_dir"], config.model, config.dataset, config.settings(), items, info
        ).path
    folder = RunFolder(group.gather(path)[0])
    try:
        if not group.first:
            yield folder
            return
        with folder.locked():
            if resumed:
                folder.check_items(items)
            group.announce(folder.path)
            yield folder
    except KeyboardInterrupt:
        raise Interrupted(folder.path) from None
    except OSError as error:  # of TensorBoard's file; other files name themselves
        raise UserError(f"{folder.path}: cannot be written: {error.strerror or error}") from None
    except UserError:
        raise
    except Exception as error:
        error.run_directory = folder.path  # type: ignore[attr-defined]  # cli.main writes the traceback there
        raise
