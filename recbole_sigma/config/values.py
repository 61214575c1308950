"""Settings as text: reading them from files and from the command line, without ever executing what they say.

YAML is read by a loader that knows plain values only. A number is what a reader takes for a number: 1e-3 is one
(YAML 1.1 calls it text), whereas 010, 10:20 and 2024-01-01 are text (YAML 1.1: 8, 620 and a date).
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from recbole_sigma.errors import UserError, one_line

CATALOGUE = "catalogue"  # the key of properties/dataset/NAME.yaml that says where the data set comes from
Files = str | Path | Sequence[str | Path] | None  # of settings; a single path is a list of one

_LARGEST_FILE = 2**18  # bytes, the settings of an ensemble of 100; PyYAML needs seconds, and some devices never end
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?(?:0|[1-9][0-9]{0,17})$"),
    "tag:yaml.org,2002:float": re.compile(
        r"""^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?
              |[-+]?[0-9]+[eE][-+]?[0-9]+
              |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
}
_REPLACED = {*_NUMBERS, *(f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "value", "merge"))}
_SURROGATE = re.compile("[\ud800-\udfff]")  # from bytes that are not UTF-8, or an escape: no file could hold it


def properties_path() -> Path:
    """The directory `properties`: inside the package in an installed copy, beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "properties", package.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no properties/overall.yaml in {package} nor beside it: install recbole-sigma again")


@cache
def recbole_path() -> Path:
    """The directory of RecBole's package, found without importing it."""
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("RecBole is not installed: pip install recbole")
    return Path(spec.submodule_search_locations[0])


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """The content of properties/schema.yaml: what each setting may be."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's takes a few milliseconds
    text = (properties_path() / "schema.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=loader))  # noqa: S506 - a safe loader


@dataclass(frozen=True)
class Given:
    """A setting's value and where it comes from: `tuned.yaml:3`, or nothing for a call or the command line."""

    value: Any
    origin: str = ""

    def error(self, message: str) -> UserError:
        """A UserError that begins with the origin."""
        return UserError(f"{self.origin}: {message}" if self.origin else message)


class SettingsLoader(yaml.SafeLoader):
    """YAML's plain values. Tags, anchors and a key that is given twice are errors."""

    # SafeLoader's rules for text without quotes, but for its numbers, dates and merge keys; our numbers follow below.
    yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] not in _REPLACED]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event, problem = self.peek_event(), ""
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            problem = "settings are plain values: no tags (!), anchors (&) or aliases (*)"
        elif _SURROGATE.search(getattr(event, "value", "")):
            problem = f"{event.value!r} holds half a character"
        if problem:
            raise ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        first: dict[Any, yaml.Node] = {}
        for key, _ in node.value:
            name = self.construct_object(key)
            if first.setdefault(name, key) is not key:
                twice = f"{name!r} is given twice (first in line {first[name].start_mark.line + 1})"
                raise ConstructorError(None, None, twice, key.start_mark)
        return mapping


class SettingsDumper(yaml.SafeDumper):
    """Writes what SettingsLoader reads back: text such as 1e3, which YAML 1.1 leaves bare, is quoted."""


for _tag, _pattern in _NUMBERS.items():
    yaml.add_implicit_resolver(_tag, _pattern, [*"-+.0123456789"], SettingsLoader, SettingsDumper)


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a setting can be nothing but text, or text or null: such values are taken as they are written."""
    kinds = schema.get("type", ())
    return {kinds} == {"string"} if isinstance(kinds, str) else {*kinds} - {"null", "array", "object"} == {"string"}


def _keep_text(node: yaml.Node, schema: Mapping[str, Any]) -> None:
    """Mark what the schema calls text as text, which YAML may take for a number, a truth value or nothing: 2024, NO.

    Keys of mappings are text. An inner mapping of settings is read by the schema of each.
    """
    for each in schema.get("anyOf", [schema]):
        if isinstance(node, yaml.ScalarNode):
            is_null = node.tag.endswith(":null") and "null" in each.get("type", ())
            node.tag = "tag:yaml.org,2002:str" if _is_text(each) and not is_null else node.tag
        elif isinstance(node, yaml.SequenceNode):
            for element in node.value:
                _keep_text(element, each.get("items", {}))
        else:
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    key.tag = "tag:yaml.org,2002:str"
                inner = each.get("properties", {}).get(str(key.value), each.get("additionalProperties"))
                _keep_text(value, inner if inner and isinstance(inner, dict) else schemas().get(str(key.value), {}))


def read_value(text: str, schema: Mapping[str, Any]) -> Any:
    """A value as typed on the command line, read as YAML; what can only be text stays as typed, quotes around it apart.

    Raises a YAMLError for what is not YAML, and RecursionError.
    """
    if _is_text(schema) and not ("array" in schema["type"] and text.lstrip().startswith("[")):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        if not quoted:
            return None if text in ("", "~", "null", "None") and "null" in schema["type"] else text
    loader = SettingsLoader(text)
    node = loader.get_single_node()
    if node is None or text == "None":
        return None
    _keep_text(node, schema)
    return loader.construct_document(node)


def at_home(path: str | Path) -> str:
    """A path with the home directory in place of `~`; unlike pathlib's, without an error for an unknown user."""
    return os.path.expanduser(path)  # noqa: PTH111


def dump_settings(settings: Mapping[str, Any]) -> str:
    """YAML, in the order of names, that `read_config_file` reads back as it was."""
    return yaml.dump(dict(settings), Dumper=SettingsDumper)


def read_config_files(paths: Files) -> dict[str, Given]:
    """The settings of YAML files; a later file wins. Raises UserError naming the file and line."""
    paths = [paths] if isinstance(paths, str | Path) else paths or ()
    return {name: given for path in paths for name, given in read_config_file(path).items()}


def read_defaults(paths: Sequence[str | Path]) -> dict[str, Given]:
    """The settings of several files of `properties/`; the key CATALOGUE is not one."""
    return {name: given for name, given in read_config_files(paths).items() if name != CATALOGUE}


def read_config_file(path: str | Path, schema: Mapping[str, Any] | None = None) -> dict[str, Given]:
    """The settings of one YAML file with the line of each. Raises UserError naming the file and line.

    `schema` is that of the file, if it is no file of settings; `~` is the home directory.
    """
    path = at_home(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UserError(f"{path}: settings in more than {_LARGEST_FILE} bytes; is it a YAML file?")
        loader = SettingsLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _keep_text(node, schema or {})
        values = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise UserError(f"config file {str(path)!r} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = one_line(", ".join(filter(None, (error.context, error.problem))))
        raise UserError(f"{path}:{line}: {problem}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:  # a byte or character that is not allowed, and its position
        raise UserError(f"{path}: not YAML text in UTF-8: {one_line(error)}") from None
    if values is None:  # an empty file
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:1: settings are written 'name: value', one per line")
    origins = [f"{path}:{key.start_mark.line + 1}" for key, _ in node.value]
    return {str(name): Given(value, at) for (name, value), at in zip(values.items(), origins, strict=True)}


def parse_overrides(args: Sequence[str]) -> dict[str, Any]:
    """`--name=value` arguments as settings.

    A value is read as YAML, `None` as in RecBole's examples is null, and what is not YAML stays text (`[0,inf)`).
    Raises UserError for any other form, and for a name with two values.
    """
    overrides: dict[str, Any] = {}
    for arg in args:
        name, equals, text = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or not name or _SURROGATE.search(arg):
            raise UserError(f"cannot read {arg!r}: a setting is written --name=value, in UTF-8")
        if not equals:
            raise UserError(f"--{name} has no value: write --{name}=value")
        try:
            value = read_value(text, schemas().get(name) or schemas().get(f"--{name}", {}))
        except (ConstructorError, RecursionError) as error:
            problem = getattr(error, "problem", "nested too deeply")
            raise UserError(f"--{name}: {one_line(problem)} (put text in quotes)") from None
        except yaml.YAMLError:
            value = text
        if overrides.setdefault(name, value) != value:
            raise UserError(f"--{name} is given twice with different values")
    return overrides


def plain(value: Any) -> Any:
    """`value` with nothing but YAML's kinds in it: None, bool, int, float, str, list, dict. Raises TypeError."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(element) for element in value]
    raise TypeError(type(value).__name__)


def all_settings(config_files: Files, settings: Mapping[str, Any]) -> dict[str, Given]:
    """All settings of the user's, with plain values; `~` in a path is the home directory."""
    given = read_config_files(config_files)
    for name, value in settings.items():
        try:
            given[name] = Given(plain(value))
        except TypeError as error:
            raise UserError(f"{name} must be a plain value (number, text, list, mapping), got a {error}") from None
    for name, value in given.items():
        if schemas().get(name, {}).get("role") == "location" and isinstance(value.value, str):
            given[name] = Given(at_home(value.value), value.origin)
    for name in {"user_inter_num_interval", "item_inter_num_interval"} & {*given}:
        match given[name].value:  # [5, 40] is a list in YAML, and an interval to whoever writes it
            case [int() | float() as low, int() | float() as high]:
                given[name] = Given(f"[{low},{high}]", given[name].origin)
    return given


def command_line() -> str:
    """The command of this process, as one would type it."""
    program = Path(sys.argv[0]).name
    return shlex.join(["recbole-sigma" if program == "cli.py" else program, *sys.argv[1:]])  # cli.py: of python -m
