"""What a sweep tries: RecBole's parameter files, read without running what they say.

    r choice [0, 2, 5, 10]
    dropout_prob uniform 0.1,0.5
    learning_rate loguniform -8,0      exponents of e: from exp(-8) to 1
    num_layers quniform 1,4,1          round(uniform / q) * q; whole numbers for a setting of whole numbers

A sample is what Hyperopt or Ray Tune draws for a parameter, its value what the setting gets. They differ where Hyperopt
or Ray would take a value apart (a list, a mapping): these are drawn by their place in the list.
"""

import ast
import dataclasses
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import check
from recbole_sigma.config.values import Given, SettingsLoader, plain
from recbole_sigma.errors import UserError, did_you_mean

_LARGEST_FILE = 2**16  # bytes
_FORMS = "'name choice [1, 2]', 'name uniform 0.1,0.5', 'name loguniform -8,0' or 'name quniform 1,10,1'"
# Settings that say what is measured on which data, or where: trials that differ in them cannot be compared.
_NOT_TUNED = {
    "model", "dataset", "data_path", "checkpoint_dir", "eval_args", "repeatable", "metrics", "topk", "valid_metric",
    "time_order", "eval_batch_size", "show_progress", "state", "threads", "use_gpu", "gpu_id", "nproc", "world_size",
    "offset", "ip", "port", "load_col", "val_interval", "user_inter_num_interval", "item_inter_num_interval",
    "filter_inter_by_user_or_item", "rm_dup_inter", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter(ABC):
    """One line of a file: the setting's name and the values it may take; `origin` is `file:line`."""

    kind: ClassVar[str]
    name: str
    origin: str = field(default="", compare=False, kw_only=True)

    def __str__(self) -> str:
        """The line of a file that gives this parameter."""
        return f"{self.name} {self.kind} {self._range()}"

    @abstractmethod
    def _range(self) -> str:
        """The values, as a file has them."""

    @abstractmethod
    def extremes(self) -> Sequence[Any]:
        """Values that are right if every value is."""

    def value(self, sample: Any) -> Any:
        """The setting's value for what Hyperopt or Ray drew."""
        return float(sample)

    @abstractmethod
    def hyperopt(self) -> Any:
        """As Hyperopt's expression."""

    @abstractmethod
    def ray(self) -> Any:
        """As Ray Tune's domain."""

    def error(self, message: str) -> UserError:
        """A UserError that begins with the place."""
        return Given(None, self.origin).error(message)


@dataclass(frozen=True)
class Choice(Parameter):
    """One of a list."""

    kind = "choice"
    values: tuple[Any, ...] = ()

    def _range(self) -> str:
        return repr(list(self.values))

    def extremes(self) -> Sequence[Any]:
        return self.values

    @property
    def _by_place(self) -> bool:
        return any(isinstance(each, (list, dict)) for each in self.values)

    def _samples(self) -> list[Any]:
        return list(range(len(self.values))) if self._by_place else list(self.values)

    def sample(self, place: int) -> Any:
        """What stands for the value at `place`."""
        return self._samples()[place]

    def value(self, sample: Any) -> Any:
        return self.values[int(sample)] if self._by_place else plain(sample)

    def hyperopt(self) -> Any:
        from hyperopt import hp

        return hp.choice(self.name, self._samples())

    def ray(self) -> Any:
        from ray import tune

        return tune.choice(self._samples())


@dataclass(frozen=True)
class Uniform(Parameter):
    """A number between two."""

    kind = "uniform"
    low: float = 0.0
    high: float = 1.0

    def _range(self) -> str:
        return f"{self.low!r},{self.high!r}"

    def extremes(self) -> Sequence[Any]:
        return self.low, self.high

    def hyperopt(self) -> Any:
        from hyperopt import hp

        return hp.uniform(self.name, self.low, self.high)

    def ray(self) -> Any:
        from ray import tune

        return tune.uniform(self.low, self.high)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """e to a number between two."""

    kind = "loguniform"

    def extremes(self) -> Sequence[Any]:
        return math.exp(self.low), math.exp(self.high)

    def hyperopt(self) -> Any:
        from hyperopt import hp

        return hp.loguniform(self.name, self.low, self.high)

    def ray(self) -> Any:
        from ray import tune

        return tune.loguniform(*self.extremes())


@dataclass(frozen=True)
class QUniform(Uniform):
    """A multiple of `q`, nearest to a number between two."""

    kind = "quniform"
    q: float = 1.0
    whole: bool = field(default=False, compare=False)  # for a setting of whole numbers

    def _range(self) -> str:
        return f"{super()._range()},{self.q!r}"

    def extremes(self) -> Sequence[Any]:
        step = self.value(self.q)  # not whole where the values are not
        return [self.value(round(each / self.q) * self.q) for each in (self.low, self.high)] + [step] * self.whole

    def value(self, sample: Any) -> Any:
        number = float(sample)
        return int(number) if self.whole and number.is_integer() else number

    def hyperopt(self) -> Any:
        from hyperopt import hp

        return hp.quniform(self.name, self.low, self.high, self.q)

    def ray(self) -> Any:
        from ray import tune

        def draw(_: Any) -> float:
            return round(random.uniform(self.low, self.high) / self.q) * self.q

        multiples = all((each / self.q).is_integer() for each in (self.low, self.high))
        return tune.quniform(self.low, self.high, self.q) if multiples else tune.sample_from(draw)


@dataclass(frozen=True)
class Space:
    """The parameters of a file, in its order."""

    parameters: tuple[Parameter, ...]

    def __str__(self) -> str:
        return "".join(f"{each}\n" for each in self.parameters)

    def values(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Settings for what was drawn."""
        return {each.name: each.value(samples[each.name]) for each in self.parameters}

    def hyperopt(self) -> dict[str, Any]:
        """For Hyperopt, as RecBole's HyperTuning makes it of a file."""
        return {each.name: each.hyperopt() for each in self.parameters}

    def ray(self) -> dict[str, Any]:
        """For Ray Tune."""
        return {each.name: each.ray() for each in self.parameters}

    @property
    def is_finite(self) -> bool:
        """Whether all of it can be tried: every parameter is a choice."""
        return all(isinstance(each, Choice) for each in self.parameters)

    def size(self) -> int:
        """How many settings it has, if it is finite."""
        return math.prod(len(each.extremes()) for each in self.parameters)

    def places(self, n: int | None, seed: int) -> list[dict[str, int]]:
        """All settings of a finite space, or `n` of them, as places in the lists of the choices.

        In random order without repetition, as RecBole's exhaustive search draws them: a part is a fair one.
        """
        size = self.size()
        found = []
        for number in random.Random(seed).sample(range(size), size if n is None else min(n, size)):
            each: dict[str, int] = {}
            for parameter in reversed(self.parameters):
                number, each[parameter.name] = divmod(number, len(parameter.extremes()))
            found.append({parameter.name: each[parameter.name] for parameter in self.parameters})
        return found

    def samples(self, places: Mapping[str, int]) -> dict[str, Any]:
        """What stands for the values at these places."""
        return {each.name: each.sample(places[each.name]) for each in self.parameters if isinstance(each, Choice)}


def read_space(path: str | Path) -> Space:
    """The parameters of a file. Raises UserError naming the file and line."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UserError(f"params_file {str(path)!r} does not exist") from None
    except OSError as error:
        raise UserError(f"params_file {str(path)!r} cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{path}: more than {_LARGEST_FILE} bytes; is it a file of parameters?")
    try:
        return parse_space(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None


def parse_space(text: str, file: str) -> Space:
    """The parameters of a file's text; `file` is its name in messages. Raises UserError."""
    found: dict[str, Parameter] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        parameter = _parameter(line.strip(), f"{file}:{number}")
        if parameter.name in found:
            raise parameter.error(f"{parameter.name} is given twice, first in {found[parameter.name].origin}")
        found[parameter.name] = parameter
    if not found:
        raise UserError(f"{file}: no parameters; one a line, written {_FORMS}")
    return Space(tuple(found.values()))


def _parameter(line: str, origin: str) -> Parameter:
    parts = line.split(maxsplit=2)
    if len(parts) < 3:
        raise UserError(f"{origin}: a parameter is written {_FORMS}, got {line!r}")
    name, kind, rest = parts
    kinds = {each.kind: each for each in (Uniform, LogUniform, QUniform)}
    if kind == Choice.kind:
        return Choice(name, _choices(rest, origin), origin=origin)
    if kind not in kinds:
        known = [Choice.kind, *kinds]
        raise UserError(f"{origin}: kind must be one of {', '.join(known)}, got {kind!r}{did_you_mean(kind, known)}")
    return kinds[kind](name, *_bounds(kind, rest, origin), origin=origin)


def _choices(text: str, origin: str) -> tuple[Any, ...]:
    """A list of Python's literals, as RecBole takes, or of YAML, where text needs no quotes."""
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
        plain_values = plain(list(values))
    except TypeError as error:
        raise UserError(
            f"{origin}: choice takes numbers, text, true, false, lists and mappings, got a {error}"
        ) from None
    if not _all_finite(plain_values):
        raise UserError(f"{origin}: choice takes finite numbers, got {text!r}")
    return tuple(plain_values)


def _all_finite(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return all(map(_all_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _bounds(kind: str, text: str, origin: str) -> list[float]:
    """low,high or low,high,q"""
    form = {"uniform": "low,high", "loguniform": "low,high", "quniform": "low,high,q"}[kind]
    try:
        numbers = [float(each) for each in text.partition("#")[0].split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(form.split(",")) or not all(map(math.isfinite, numbers)):
        raise UserError(f"{origin}: {kind} takes the numbers {form}, got {text!r}")
    low, high, *q = numbers
    if not low < high:
        raise UserError(f"{origin}: low must be less than high, got {text!r}")
    if q and not q[0] > 0:
        raise UserError(f"{origin}: q must be greater than 0, got {text!r}")
    if kind == "loguniform" and high > math.log(1e300):
        raise UserError(f"{origin}: the numbers of loguniform are exponents of e; exp({high:g}) is too large")
    return numbers


def check_space(space: Space, base: Config) -> Space:
    """The space, fit for what the settings are; each value is right for its setting.

    `base` is the sweep's own config. Raises UserError naming file and line.
    """
    return Space(tuple(_checked(each, base) for each in space.parameters))


def _checked(parameter: Parameter, base: Config) -> Parameter:
    name, given = parameter.name, base.settings()
    if name in _NOT_TUNED:
        raise parameter.error(f"{name} cannot be tuned: it is the same for all trials that are compared")
    try:
        Config(base.model_class, base.dataset, settings={**given, name: given.get(name)})
    except UserError as error:
        raise parameter.error(str(error)) from None  # an unknown name, with the nearest
    default = base.internal_config_dict.get(name)
    if isinstance(parameter, QUniform) and type(default) is int:
        parameter = dataclasses.replace(parameter, whole=True)
    for value in parameter.extremes():
        check(name, Given(value, parameter.origin), default, getattr(base.model_class, "choices", {}))
    return parameter
