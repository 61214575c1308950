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
from recbole_sigma.config.values import dump_settings, read_config_file
from recbole_sigma.data.item_info import item_info
from recbole_sigma.data.preparation import Data, load
from recbole_sigma.errors import Interrupted, UserError, one_line, out_of_memory
from recbole_sigma.evaluation.metrics import metrics_of_ranks
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops import CudaExtensionError, active_backend
from recbole_sigma.ops.cuda import MOST_STATES
from recbole_sigma.registry import build_model, find_model
from recbole_sigma.runs.files import json_text, read_json, write_text
from recbole_sigma.runs.folder import RunFolder

if TYPE_CHECKING:
    from recbole_sigma.runs.result import RunResult
    from recbole_sigma.training.callbacks import Callback
    from recbole_sigma.training.distributed import Group

logger = logging.getLogger(__name__)


def run(
    model: str | type,
    dataset: str,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> RunResult:
    """Train one model on one data set, choose the epoch on validation, evaluate test once, write the run directory.

    Args:
        model: a name that `registry.find_model` knows, `package.module:Class`, or a class.
        dataset: a folder in `data_path`, or `ml-100k`.
        config_files: YAML files; `settings` win over them.
        callbacks: are called after each epoch (not with `nproc` above 1: the processes are others).
        test: False for a trial of a sweep: test is not evaluated.

    Raises UserError for settings, data or a training that cannot be right, and Interrupted for Ctrl-C once the run
    directory exists.
    """
    return _start(Config(model, dataset, config_files=config_files, settings=settings), callbacks, test, None)


def resume(
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    model: type | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    test: bool = True,
) -> RunResult:
    """Resume an interrupted run after its last complete epoch; on CPU bit for bit as if it had not been interrupted.

    Args:
        folder: the run directory; that of a finished run gives its result.
        settings: those that may change: where things are, how fast it runs, `epochs`, `stopping_step`.
        model: the class, for a run of a class that is not in a package of recbole-sigma or RecBole.
        callbacks, test: as for `run`. A finished trial that is resumed with `test` is tested, with its best weights.

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
    return _start(config, callbacks, test, folder)


def _start(config: Config, callbacks: Sequence[Callback], test: bool, folder: Path | None) -> RunResult:
    """Train in this process, in as many as `nproc` says, or as one of those that torchrun has started."""
    from recbole_sigma.training import distributed

    if os.environ.keys() >= distributed.VARIABLES:
        return _train(config, distributed.join(config), callbacks, test, folder)
    if config["nproc"] > 1:
        arguments = config.model_class, config.dataset, config.settings(), test, folder
        result: RunResult = distributed.launch(config["nproc"], _train_in_worker, *arguments)
        return result
    return _train(config, distributed.ALONE, callbacks, test, folder)


def _train_in_worker(model: type, dataset: str, settings: dict[str, Any], test: bool, folder: Path | None) -> RunResult:
    """In a process that `launch` has started, which sets torchrun's variables."""
    return _start(Config(model, dataset, settings=settings), (), test, folder)


def _train(config: Config, group: Group, callbacks: Sequence[Callback], test: bool, resumed: Path | None) -> RunResult:
    from recbole_sigma.runs.result import RunResult, data_metadata, result_content
    from recbole_sigma.training.callbacks import TensorBoard
    from recbole_sigma.training.checkpoint import Checkpoint
    from recbole_sigma.training.trainer import SequenceTrainer

    started = time.time()
    backend = _prepare(config, group)
    with out_of_memory():
        data = load(config, group.rank, group.size)
        network = build_model(config, data.train.dataset)
        group.copy_from_first(network)
        with _run_folder(resumed, config, data, group) as folder:
            metadata = data_metadata(data.dataset)
            logger.info("%s on %s: %s", config.model, config.dataset, metadata)
            threads = torch.get_num_threads()
            logger.info("%s, %s, %d threads; run directory %s", config["device"], backend, threads, folder.path)
            trainer = SequenceTrainer(config, network, group)
            if group.rank:
                init_seed(config["seed"] + group.rank, config["reproducibility"])  # dropout differs between processes
            fixed = {key: value for key, value in identity(config.settings()).items() if not may_change(key)}
            checkpoint = Checkpoint(folder, trainer, data.train, {**metadata, **fixed}, started)
            if resumed:
                checkpoint.restore()
            with closing(TensorBoard(folder.path, len(trainer.rows))) if group.first else nullcontext() as events:
                trainer.fit(data.train, data.valid, [checkpoint, *callbacks, events] if events else [checkpoint])
            metrics = {}
            for split, loader in {"valid": data.valid, **({"test": data.test} if test else {})}.items():
                ranks = trainer.ranks(loader, split)
                metrics[split] = metrics_of_ranks(ranks.rank, trainer.topk)
                if group.first:
                    folder.write_ranks(split, ranks.arrays())
            if group.first:
                content = result_content(config, metadata, trainer.summary(), metrics)
                content |= {"backend": backend, **checkpoint.times()}
                write_text(folder.path / "result.json", json_text(content))  # last: now the run is complete
    return RunResult(folder.path, trainer.best.epoch, metrics["valid"], metrics.get("test", {}))


def _prepare(config: Config, group: Group) -> str:
    """Set up the process as the settings say; returns the name of what computes scans."""
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
    if config["device"].type == "cuda":
        torch.cuda.reset_peak_memory_stats(config["device"])  # an earlier run of this process has set it
    init_seed(config["seed"], config["reproducibility"])
    states = config["d_state"]
    if not issubclass(config.model_class, SequenceModel) or states is None:
        return "torch"  # a model without a scan, or one of RecBole's own
    if config["device"].type == "cuda" and states > MOST_STATES:
        raise UserError(f"d_state must be at most {MOST_STATES} on a GPU, got {states}; or run on CPU: use_gpu=False")
    try:
        return active_backend(config["device"])
    except CudaExtensionError as error:
        raise UserError(one_line(error)) from None


@contextmanager
def _run_folder(resumed: Path | None, config: Config, data: Data, group: Group) -> Iterator[RunFolder]:
    """The run directory for all processes, made or checked, and locked, by the first; Ctrl-C and errors name it."""
    items = [str(token) for token in data.dataset.field2id_token[data.dataset.iid_field]]
    path = resumed
    if group.first and path is None:
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
                write_text(folder.path / "config.yaml", dump_settings(config.settings()))
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
