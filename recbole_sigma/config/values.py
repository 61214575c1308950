"""Settings as text: reading them from files and from the command line, without ever running what they say.

YAML is read by a loader that knows plain values only. A number is what a reader takes for a number: 1e-3 is one
(YAML 1.1 calls it text), whereas 010, 10:20 and 2024-01-01 are text (YAML 1.1: 8, 620 and a date).
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from recbole_sigma.errors import UserError

_INTEGER = re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,17})$")
_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?
          |[-+]?[0-9]+[eE][-+]?[0-9]+
          |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_LARGEST_TEXT = 2**16  # of settings, in bytes: seconds, as PyYAML reads
_REPLACED = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "value", "merge")}


def properties_path() -> Path:
    """The directory `properties`: inside the package in an installed copy, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "properties", package.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no properties/overall.yaml in {package} nor beside it: install recbole-sigma again")


@dataclass(frozen=True)
class Given:
    """A setting's value and where it stands: `tuned.yaml:3`, or nothing for a call or the command line."""

    value: Any
    origin: str = ""

    def error(self, message: str) -> UserError:
        """A UserError that begins with the place."""
        return UserError(f"{self.origin}: {message}" if self.origin else message)


class SettingsLoader(yaml.SafeLoader):
    """YAML's plain values. Tags, anchors and a key that is given twice are errors."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ConstructorError(None, None, "settings are plain values: no & and *", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise ConstructorError(None, None, f"settings are plain values: no tag {event.tag!r}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if isinstance(node, yaml.ScalarNode) and _has_surrogates(node.value):
            raise ConstructorError(None, None, f"{node.value!r} holds half a character", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in first:
                    twice = f"{key.value!r} is given twice (first in line {first[key.value]})"
                    raise ConstructorError(None, None, twice, key.start_mark)
                first[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _has_surrogates(text: str) -> bool:
    """Whether no file could hold the text: it came from bytes that are not UTF-8, or from an escape such as \\ud800."""
    return any("\ud800" <= each <= "\udfff" for each in text)


def _resolvers() -> dict[Any, list[tuple[str, re.Pattern[str]]]]:
    """SafeLoader's rules for text without quotes, with our numbers, and without dates and merge keys."""
    rules = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in _REPLACED]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789":
        rules[first] = [("tag:yaml.org,2002:int", _INTEGER), ("tag:yaml.org,2002:float", _FLOAT), *rules.get(first, [])]
    return rules


SettingsLoader.yaml_implicit_resolvers = _resolvers()


class SettingsDumper(yaml.SafeDumper):
    """Writes what SettingsLoader reads back: text such as 1e3, which YAML 1.1 leaves bare, stands in quotes."""


SettingsDumper.yaml_implicit_resolvers = {
    first: [*rules, *yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])] for first, rules in _resolvers().items()
}


def dump_settings(settings: Mapping[str, Any]) -> str:
    """YAML, in the order of names, that `read_config_file` reads back as it was."""
    return yaml.dump(dict(settings), Dumper=SettingsDumper, sort_keys=True)


def read_config_files(paths: Sequence[str | Path]) -> dict[str, Given]:
    """The settings of several YAML files; a later file wins. Raises UserError naming the file and line."""
    given: dict[str, Given] = {}
    for path in paths:
        given.update(read_config_file(path))
    return given


def read_config_file(path: str | Path) -> dict[str, Given]:
    """The settings of one YAML file with the line of each. Raises UserError naming the file and line."""
    loader = None
    try:
        loader = SettingsLoader(_text_of(Path(path)))
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise UserError(f"config file {str(path)!r} does not exist") from None
    except OSError as error:
        raise UserError(f"config file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = _one_line(", ".join(filter(None, (error.context, error.problem))))
        raise UserError(f"{path}:{line}: {problem}") from None
    except yaml.YAMLError as error:  # a character that YAML forbids; its text names the position
        raise UserError(f"{path}: {_one_line(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    if values is None:  # an empty file
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:1: settings are written 'name: value', one a line")
    lines = [key.start_mark.line + 1 for key, _ in node.value]
    return {str(key): Given(value, f"{path}:{line}") for (key, value), line in zip(values.items(), lines, strict=True)}


def _text_of(path: Path) -> str:
    """A file's text; of a device that never ends no more than is looked at."""
    with path.open("rb") as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise UserError(f"{path}: settings in more than {_LARGEST_TEXT} bytes; is it a YAML file?")
    return content.decode("utf-8")


def parse_overrides(args: Sequence[str]) -> dict[str, Any]:
    """`--key=value` arguments as settings.

    A value is read as YAML (`0.001`, `true`, `[10, 20]`, `{valid: full}`), `None` as in RecBole's examples is null, and
    what is not YAML stays text (`[0,inf)`). Raises UserError for any other form, and for a key with two values.
    """
    overrides: dict[str, Any] = {}
    for arg in args:
        if _has_surrogates(arg):
            raise UserError(f"cannot read {arg!r}: it is not text in UTF-8")
        key, equals, text = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or not key:
            raise UserError(f"cannot read {arg!r}: a setting is written --name=value")
        if not equals:
            raise UserError(f"--{key} has no value: write --{key}=value")
        value = _parse_value(key, text)
        if key in overrides and overrides[key] != value:
            raise UserError(f"--{key} is given twice with different values")
        overrides[key] = value
    return overrides


def _parse_value(key: str, text: str) -> Any:
    if text == "None":
        return None
    try:
        return yaml.load(text, Loader=SettingsLoader)  # noqa: S506 - a SafeLoader without tags
    except ConstructorError as error:
        raise UserError(f"--{key}: {_one_line(error.problem)} (put text in quotes)") from None
    except RecursionError:
        raise UserError(f"--{key}: nested too deeply") from None
    except yaml.YAMLError:
        return text


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())


def plain(value: Any) -> Any:
    """`value` with nothing but YAML's kinds in it: None, bool, int, float, str, list, dict. Raises TypeError."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    raise TypeError(type(value).__name__)


def command_line() -> str:
    """What this process was called with, as one would type it."""
    program = Path(sys.argv[0]).name
    return shlex.join(["recbole-sigma" if program == "cli.py" else program, *sys.argv[1:]])  # cli.py: of python -m
