"""What a sweep writes and shows: tuning.json, trials.csv, a progress bar, a table. All follow from its trials.

tuning.json has what is needed to go on, too, as plain values.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from recbole_sigma.errors import UserError
from recbole_sigma.experiment.space import parse_space
from recbole_sigma.experiment.sweep import Outcome, Sweep
from recbole_sigma.quick_start import RunResult
from recbole_sigma.runs.files import write_file

_FILE = "tuning.json"
_WIDTH = 100  # characters of the table


@dataclass(frozen=True)
class Search:
    """How settings are drawn. `options` are Ray's, by name."""

    tool: str
    algo: str
    max_evals: int | None
    options: Mapping[str, Any]


class Records:
    """The files of a sweep, as far as it has come."""

    def __init__(self, sweep: Sweep, search: Search, key: str) -> None:
        """Makes the folder. `key` is of what the sweep compares. Raises UserError where that is not possible."""
        self._sweep, self._search, self._key = sweep, search, key
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"checkpoint_dir: cannot make the folder {sweep.folder}: {error.strerror}") from None

    @property
    def finished(self) -> int:
        """How many trials the sweep has had when it came to its end, 0 if it has not: failed ones are tried again."""
        try:
            number = json.loads((self._sweep.folder / _FILE).read_text(encoding="utf-8"))["finished"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        left = any(not each.done for each in self._sweep.outcomes())
        return number if isinstance(number, int) and not left else 0

    def write(self, best: Outcome | None = None, winner: RunResult | None = None, finished: int = 0) -> None:
        """tuning.json and trials.csv; at the end with the winner, and how many trials it is the best of."""
        outcomes = self._sweep.outcomes()
        record = {
            **{name: getattr(self._sweep, name) for name in ("model", "dataset", "given")},
            "space": str(self._sweep.space).splitlines(),
            **asdict(self._search),
            "key": self._key,
            "chosen_by": f"validation {self._sweep.metric}",
            "finished": finished,
            "trials": [self._described(each) for each in outcomes],
            "winner": best and winner and {**self._described(best), "test": winner.test},
        }
        _write(self._sweep.folder / _FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        _write(self._sweep.folder / "trials.csv", self._csv(outcomes))

    def _described(self, outcome: Outcome) -> dict[str, Any]:
        """A trial, with its run's folder as seen from the sweep's."""
        kept = ("values", "status", "epochs", "best_epoch", "valid", "error")
        run = self._sweep.run_folder(outcome).relative_to(self._sweep.folder)
        folder = {"folder": str(run) if outcome.run else ""}
        return {name: each for name, each in asdict(outcome).items() if name in kept} | folder

    def _csv(self, outcomes: list[Outcome]) -> str:
        rows = []
        for number, outcome in enumerate(outcomes, start=1):
            described = self._described(outcome)
            nested = {**described.pop("values"), **{f"valid {name}": each for name, each in described["valid"].items()}}
            del described["valid"]
            rows.append({"trial": number, **nested, **described})
        columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        return text.getvalue()

    @contextmanager
    def progress(self, n_trials: int, shown: bool) -> Iterator[Callable[[Outcome], None]]:
        """A bar over `n_trials`; gives what is to be called when a trial has ended."""
        best = 0.0
        with tqdm(total=n_trials, unit="trial", ncols=_WIDTH, disable=not shown) as bar:
            bar.set_description("trials")

            def ended(outcome: Outcome) -> None:
                nonlocal best
                best = max(best, self._sweep.score(outcome))
                bar.set_postfix_str(f"best {self._sweep.metric} {best:.4f}", refresh=False)
                bar.update()
                if outcome.error:
                    bar.write(f"trial failed: {settings_text(outcome.values)}: {outcome.error}")
                self.write()

            yield ended


def read_record(folder: Path) -> tuple[Sweep, Search, str]:
    """The sweep in a folder, how it searches, its key. Raises UserError for a folder that is none of a sweep."""
    file = folder / _FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"model": str, "dataset": str, "given": dict, "space": list, "tool": str, "algo": str, "options": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(record[name], kind)]
        metric = str(record["chosen_by"]).removeprefix("validation ")
        search = Search(record["tool"], record["algo"], record["max_evals"], record["options"])
        lines = [str(line) for line in record["space"]]
        key = str(record["key"])
    except FileNotFoundError:
        raise UserError(f"{folder}: not the folder of a sweep; one has a {_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if wrong:
        raise UserError(f"{file}: not of a sweep: {wrong[0]} is {record[wrong[0]]!r}")
    space = parse_space("\n".join(lines), str(file))
    return Sweep(folder, record["model"], record["dataset"], record["given"], space, metric), search, key


def trials_table(trials: list[Outcome], best: Outcome, metric: str) -> str:
    """A line a trial, best validation first and marked; at most 100 characters wide. It knows nothing of test."""
    trials = sorted(trials, key=lambda each: each.valid.get(metric, 0.0), reverse=True)
    table = _table(trials, best, lambda values: [_text(each) for each in values.values()], list(best.values))
    if _width(table) > _WIDTH:  # no room for a column a parameter
        longest = max(len(settings_text(each.values)) for each in trials)
        table = _table(trials, best, partial(_shortened, longest), ["settings"])
        room = max(longest - max(_width(table) - _WIDTH, 0), 10)
        table = _table(trials, best, partial(_shortened, room), ["settings"])
    return f"Validation, * chosen by {_title(metric)}\n{table}"


def _table(
    trials: list[Outcome], best: Outcome, shown: Callable[[Mapping[str, Any]], list[str]], headers: list[str]
) -> str:
    rows = []
    for each in trials:
        metrics = [f"{each.valid[name]:.4f}" if name in each.valid else "-" for name in best.valid]
        rows.append(["*" * (each.values == best.values), *shown(each.values), *metrics, str(each.epochs), each.status])
    titles = ["", *headers, *map(_title, best.valid), "epochs", ""]
    return str(tabulate(rows, headers=titles, disable_numparse=True))


def _width(table: str) -> int:
    return max(map(len, table.splitlines()))


def _shortened(room: int, values: Mapping[str, Any]) -> list[str]:
    text = settings_text(values)
    return [text if len(text) <= room else f"{text[: room - 3]}..."]


def winner_table(best: Outcome, winner: RunResult) -> str:
    """The chosen trial's metrics, validation and test side by side."""
    rows = [[_title(metric), winner.valid[metric], winner.test[metric]] for metric in winner.test]
    table = tabulate(rows, headers=["", "valid", "test"], floatfmt=".4f")
    return f"Chosen: {settings_text(best.values)}\n{table}"


def settings_text(values: Mapping[str, Any]) -> str:
    """`r=5, num_layers=1`; numbers in four digits."""
    return ", ".join(f"{name}={_text(each)}" for name, each in values.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _title(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{'HR' if name == 'hit' else name.upper()}@{k}"


def _write(file: Path, text: str) -> None:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_file(file, write)
