"""The search space of a sweep: RecBole's parameter files, read without executing anything in them.

    r choice [0, 2, 5, 10]
    dropout_prob uniform 0.1,0.5
    learning_rate loguniform -8,0      exponents of e: from exp(-8) to 1
    num_layers quniform 1,4,1          round(uniform / q) * q

A *sample* is what Hyperopt or Ray Tune draws for a parameter, its *value* is what the setting gets. For a choice the
sample is an index into the list, since both tools would take lists and mappings apart.
"""

import ast
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import check, role
from recbole_sigma.config.values import Given, SettingsLoader, plain
from recbole_sigma.errors import UserError, did_you_mean

_LARGEST_FILE = 2**16  # bytes
_FORMS = "'name choice [1, 2]', 'name uniform 0.1,0.5', 'name loguniform -8,0' or 'name quniform 1,10,1'"
_KINDS = {"choice": "[a, b]", "uniform": "low,high", "loguniform": "low,high", "quniform": "low,high,q"}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter file.

    Attributes:
        name: the setting.
        kind: choice, uniform, loguniform or quniform.
        values: the values of a choice; for the other kinds low and high, and for quniform q.
        origin: `file:line`, for messages.
    """

    name: str
    kind: str
    values: tuple[Any, ...]
    origin: str = field(default="", compare=False)

    def __str__(self) -> str:
        """The line of a file that gives this parameter."""
        values = repr(list(self.values)) if self.kind == "choice" else ",".join(map(repr, self.values))
        return f"{self.name} {self.kind} {values}"

    def value(self, sample: Any) -> Any:
        """The setting's value for a sample: of a choice its element, otherwise a number (quniform: a multiple of q)."""
        if self.kind == "choice":
            return self.values[int(sample)]
        number = float(sample)
        if self.kind == "quniform":
            number = round(number / self.values[2]) * self.values[2]
            return int(number) if number.is_integer() else number
        return number

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

    def error(self, message: str) -> UserError:
        """A UserError that names the file and line of this parameter."""
        return Given(None, self.origin).error(message)


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

        return {
            parameter.name: hp.choice(parameter.name, list(range(len(parameter.values))))
            if parameter.kind == "choice"
            else getattr(hp, parameter.kind)(parameter.name, *parameter.values)
            for parameter in self.parameters
        }

    def ray(self) -> dict[str, Any]:
        """Ray Tune's domains; for quniform `value` does the rounding."""
        from ray import tune

        domains = {}
        for parameter in self.parameters:
            if parameter.kind == "choice":
                domains[parameter.name] = tune.choice(list(range(len(parameter.values))))
            elif parameter.kind == "loguniform":
                domains[parameter.name] = tune.loguniform(*parameter.extremes())
            else:
                domains[parameter.name] = tune.uniform(*parameter.values[:2])
        return domains

    def size(self) -> int | None:
        """The number of different settings, None if there is no end of them."""
        if any(parameter.kind != "choice" for parameter in self.parameters):
            return None
        return math.prod(len(parameter.values) for parameter in self.parameters)

    def points(self, n: int, seed: int) -> list[dict[str, Any]]:
        """Samples of `n` different settings of a finite space, in random order: the first few are a fair selection.

        A larger `n` begins with those of a smaller one.
        """
        shape = [len(parameter.values) for parameter in self.parameters]
        names = [parameter.name for parameter in self.parameters]
        numbers = random.Random(seed).sample(range(math.prod(shape)), n)
        return [dict(zip(names, map(int, np.unravel_index(number, shape)), strict=True)) for number in numbers]


def read_space(path: str | Path) -> Space:
    """Read a parameter file. Raises UserError naming the file and line."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"params_file {str(path)!r} cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{path}: more than {_LARGEST_FILE} bytes; is it a parameter file?")
    try:
        return parse_space(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None


def parse_space(text: str, file: str) -> Space:
    """Parse the text of a parameter file; `file` is its name in messages. Raises UserError."""
    parameters: dict[str, Parameter] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        origin, words = f"{file}:{number}", line.strip().split(maxsplit=2)
        if len(words) < 3:
            raise UserError(f"{origin}: a parameter is written {_FORMS}, got {line.strip()!r}")
        name, kind, rest = words
        if kind not in _KINDS:
            hint = did_you_mean(kind, _KINDS)
            raise UserError(f"{origin}: kind must be one of {', '.join(_KINDS)}, got {kind!r}{hint}")
        values = _choices(rest, origin) if kind == "choice" else _numbers(kind, rest, origin)
        parameter = Parameter(name, kind, values, origin)
        if name in parameters:
            raise parameter.error(f"{name} is given twice, first in {parameters[name].origin}")
        parameters[name] = parameter
    if not parameters:
        raise UserError(f"{file}: no parameters; one per line, written {_FORMS}")
    return Space(tuple(parameters.values()))


def _choices(text: str, origin: str) -> tuple[Any, ...]:
    """Parse a list of Python literals, as in RecBole, or of YAML values, where text needs no quotes."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        try:
            values = yaml.load(text, Loader=SettingsLoader)  # noqa: S506 - a SafeLoader without tags
        except (yaml.YAMLError, RecursionError):
            values = None
    if not isinstance(values, (list, tuple)) or not values:
        raise UserError(f"{origin}: choice takes a list such as [0.1, 0.2] or [CE, BPR], got {text!r}")
    try:
        choices = plain(list(values))
        json.dumps(choices, allow_nan=False)
    except TypeError as error:
        allowed = "numbers, text, true, false, lists and mappings"
        raise UserError(f"{origin}: choice takes {allowed}, got a {error}") from None
    except ValueError:
        raise UserError(f"{origin}: choice takes finite numbers, got {text!r}") from None
    return tuple(choices)


def _numbers(kind: str, text: str, origin: str) -> tuple[float, ...]:
    """Parse `low,high` or `low,high,q`."""
    try:
        numbers = tuple(float(number) for number in text.partition("#")[0].split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(_KINDS[kind].split(",")) or not all(map(math.isfinite, numbers)):
        raise UserError(f"{origin}: {kind} takes the numbers {_KINDS[kind]}, got {text!r}")
    low, high, *q = numbers
    if not low < high:
        raise UserError(f"{origin}: low must be less than high, got {text!r}")
    if q and not (q[0] > 0 and max(abs(low), abs(high)) < q[0] * 2**50):
        raise UserError(f"{origin}: q must be greater than 0, and not tiny beside low and high, got {text!r}")
    if kind == "loguniform" and high > math.log(1e300):
        raise UserError(f"{origin}: the numbers of loguniform are exponents of e; exp({high:g}) is too large")
    return numbers


def check_space(space: Space, base: Config) -> None:
    """Check that each parameter is a setting that may be tuned, and each of its values right for it.

    `base` is the configuration that the trials share. Raises UserError naming file and line.
    """
    given = base.settings()
    for parameter in space.parameters:
        name = parameter.name
        if role(name) not in ("model", "training"):
            raise parameter.error(f"{name} cannot be tuned: trials that differ in it cannot be compared")
        try:
            Config(base.model_class, base.dataset, settings={**given, name: given.get(name)})
        except UserError as error:
            raise parameter.error(str(error)) from None  # an unknown name, with the nearest
        default = base.internal_config_dict.get(name)
        for value in parameter.extremes():
            check(name, Given(value, parameter.origin), default, getattr(base.model_class, "choices", {}))
