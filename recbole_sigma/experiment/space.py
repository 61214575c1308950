"""What a sweep is given: its options, and its search space in RecBole's parameter files, of which nothing is executed.

A *sample* is what Hyperopt draws for a parameter, its *value* is what the setting gets. For a choice the sample is an
index into the list, since Hyperopt and Ray would take lists and mappings apart.
"""

import ast
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from recbole_sigma.config.schema import check, role
from recbole_sigma.config.values import Given, SettingsLoader, plain
from recbole_sigma.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from recbole_sigma.config.config import Config

# Options and their defaults; schema.yaml says what each may be.
_OF_RAY = {
    "jobs": None,  # trials at the same time; None: as many as there is room for
    "cpus_per_trial": 1.0,
    "gpus_per_trial": None,  # None: one on a machine that has one
    "asha": True,
    "grace_period": 5,  # epochs that every trial gets
    "reduction_factor": 3.0,
}
OPTIONS: dict[str, Any] = {"tool": "hyperopt", "algo": None, "max_evals": None, **_OF_RAY}
_LARGEST_EXPONENT = 690  # exp(690) is about 1e300
_FORMS = "'name choice [1, 2]', 'name uniform 0.1,0.5', 'name loguniform -8,0' or 'name quniform 1,10,1'"
_KINDS = {
    "choice": "a list such as [0.1, 0.2] or [CE, BPR], of finite numbers, text, true, false, lists and mappings",
    "uniform": "low,high with low less than high",
    "loguniform": f"low,high with low less than high: exponents of e, at most {_LARGEST_EXPONENT}",
    "quniform": "low,high,q with low less than high, and q greater than 0 and not tiny beside them",
}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter file; `name` is the setting."""

    name: str
    kind: str  # choice, uniform, loguniform or quniform
    values: tuple[Any, ...]  # of a choice its values; of the other kinds low and high, and of quniform q
    origin: str = field(default="", compare=False)  # `file:line`, for messages

    def __str__(self) -> str:
        """The line of a file that gives this parameter."""
        values = repr(list(self.values)) if self.kind == "choice" else ",".join(map(repr, self.values))
        return f"{self.name} {self.kind} {values}"

    def value(self, sample: Any) -> Any:
        """The setting's value for a sample: of a choice its element, otherwise a number (quniform: a multiple of q)."""
        if self.kind == "choice":
            return self.values[int(sample)]
        if self.kind != "quniform":
            return float(sample)
        number = round(float(sample) / self.values[2]) * self.values[2]
        return int(number) if number.is_integer() else number

    def sample(self, value: Any) -> Any:
        """The sample of a value, which may have been written as JSON. Raises ValueError if there is none."""
        if self.kind == "choice":
            return [json.dumps(choice) for choice in self.values].index(json.dumps(value))
        return float(value)

    def extremes(self) -> Sequence[Any]:
        """Values that are right for the setting if every value is."""
        if self.kind == "choice":
            return self.values
        if self.kind == "loguniform":
            return [math.exp(exponent) for exponent in self.values]
        low, high, *q = self.values
        return [self.value(number) for number in (low, *(min(low + step, high) for step in q), high)]


@dataclass(frozen=True)
class Space:
    """The parameters of a file, in its order."""

    parameters: tuple[Parameter, ...]

    def __str__(self) -> str:
        return "".join(f"{parameter}\n" for parameter in self.parameters)

    def values(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """The settings for samples."""
        return {parameter.name: parameter.value(samples[parameter.name]) for parameter in self.parameters}

    def samples(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The samples for settings. Raises KeyError, TypeError or ValueError for settings outside this space."""
        return {parameter.name: parameter.sample(values[parameter.name]) for parameter in self.parameters}

    def hyperopt(self) -> dict[str, Any]:
        """Hyperopt's expressions; the values they draw are those of the expressions RecBole makes of the file."""
        from hyperopt import hp

        expressions = {}
        for parameter in self.parameters:
            arguments = [[*range(len(parameter.values))]] if parameter.kind == "choice" else parameter.values
            expressions[parameter.name] = getattr(hp, parameter.kind)(parameter.name, *arguments)
        return expressions

    def size(self) -> int | None:
        """The number of different settings, None if there is no end of them."""
        if any(parameter.kind != "choice" for parameter in self.parameters):
            return None
        return math.prod(len(parameter.values) for parameter in self.parameters)

    def points(self, n: int, seed: int) -> list[dict[str, Any]]:
        """Samples of `n` different settings of a finite space, in random order; a larger `n` begins with the same."""
        shape = [len(parameter.values) for parameter in self.parameters]
        names = [parameter.name for parameter in self.parameters]
        draw, numbers = random.Random(seed), dict[int, None]()
        while len(numbers) < n:  # `sample` has another order for another n
            numbers[draw.randrange(math.prod(shape))] = None
        return [dict(zip(names, map(int, np.unravel_index(number, shape)), strict=True)) for number in numbers]


def read_space(path: str | Path) -> Space:
    """Read a parameter file. Raises UserError naming the file and line."""
    try:
        return parse_space(Path(path).read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise UserError(f"params_file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None


def parse_space(text: str, file: str) -> Space:
    """Parse the text of a parameter file; `file` is its name in messages. Raises UserError."""
    parameters: dict[str, Parameter] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        origin, words = f"{file}:{number}", line.strip().split(maxsplit=2)
        if len(words) < 3 or words[1] not in _KINDS:
            raise UserError(f"{origin}: a parameter is written {_FORMS}, got {line.strip()!r}")
        name, kind, values = words
        if name in parameters:
            raise UserError(f"{origin}: {name} is given twice, first in {parameters[name].origin}")
        try:
            parameters[name] = Parameter(name, kind, _parse_values(kind, values), origin)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, yaml.YAMLError):
            raise UserError(f"{origin}: {kind} takes {_KINDS[kind]}, got {values!r}") from None
    if not parameters:
        raise UserError(f"{file}: no parameters; one per line, written {_FORMS}")
    return Space(tuple(parameters.values()))


def _parse_values(kind: str, text: str) -> tuple[Any, ...]:
    """Parse what follows the kind; an exception of any kind that `parse_space` knows for what is wrong."""
    if kind == "choice":
        try:
            choices = ast.literal_eval(text)  # as in RecBole
        except (ValueError, TypeError, SyntaxError):
            choices = yaml.load(text, Loader=SettingsLoader)  # noqa: S506 - a SafeLoader; text needs no quotes
        if not isinstance(choices, (list, tuple)) or not choices:
            raise ValueError(text)
        values = tuple(plain(choices))
        json.dumps(values, allow_nan=False)
        return values
    numbers = tuple(float(number) for number in text.partition("#")[0].split(","))
    low, high, *q = numbers
    right = low < high and all(map(math.isfinite, numbers)) and len(q) == (kind == "quniform")
    q_fits = all(step > 0 and max(abs(low), abs(high)) < step * 2**50 for step in q)
    if not (right and q_fits) or (kind == "loguniform" and high > _LARGEST_EXPONENT):
        raise ValueError(text)
    return numbers


def check_space(space: Space, base: "Config") -> None:
    """UserError, with file and line, for a setting that may not be tuned, or a wrong value; trials share `base`."""
    known = base.settings()
    for parameter in space.parameters:
        name, origin = parameter.name, parameter.origin
        if role(name) not in ("model", "training"):
            raise UserError(f"{origin}: {name} cannot be tuned: trials that differ in it cannot be compared")
        if name not in known:
            raise UserError(f"{origin}: unknown setting {name!r}{did_you_mean(name, known)}")
        default = base.internal_config_dict.get(name)
        for value in parameter.extremes():
            check(name, Given(value, origin), default, getattr(base.model_class, "choices", {}))


def complete_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """All options, with defaults. Raises UserError for a wrong one, and for a tool that is not installed."""
    options = {**OPTIONS, **given}
    for name, value in given.items():
        if value != OPTIONS.get(name):
            check(f"--{name}", Given(value), None, {})
            if name in _OF_RAY and options["tool"] != "ray":
                raise UserError(f"--{name} is an option of --engine=ray")
    for library in (options["tool"], "hyperopt"):
        if find_spec(library) is None:
            raise UserError(f"{library} is not installed; install with pip install 'recbole-sigma[tune]'")
    return options
