"""Arguments that the commands share, each declared once: `--name=value`, `--name value`, lists, names."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from recbole_sigma.config.early import check_early, read_run
from recbole_sigma.config.schema import check
from recbole_sigma.config.values import (
    Given,
    all_settings,
    at_home,
    parse_overrides,
    read_config_files,
    read_value,
    schemas,
)
from recbole_sigma.errors import UserError

# Other names of options: those of earlier versions, and RecBole's.
ALIASES = {
    "models": "model", "datasets": "dataset", "tool": "engine", "case-study": "user", "case_study": "user",
    "config_file_list": "config_files", "config-files": "config_files",
}  # fmt: skip
FORMS = ("md", "html", "csv", "tex")  # of a report


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def command_parser(help_text: str | None) -> Parser:
    """The parser of one command, whose help is its module's docstring: usage, description, then settings, examples."""
    usage, description, *details = (help_text or "").split("\n\n")
    epilog = "\n\n".join(details)
    raw = argparse.RawDescriptionHelpFormatter  # keeps line breaks
    return Parser(usage=usage, description=description, epilog=epilog, formatter_class=raw, allow_abbrev=False)


def parse(parser: Parser, argv: Sequence[str], no_settings: str = "") -> tuple[argparse.Namespace, dict[str, Any]]:
    """The parser's own options, and every other `--name=value` or `--name value` as a setting.

    Settings are joined to their values before argparse sees them: it would take the `1` of `--epochs 1` for a
    positional argument. Options that take no value (`--groups`) stay alone. `no_settings` begins the UserError for one.
    """
    actions = parser._option_string_actions
    flags = {name for name, action in actions.items() if action.nargs == 0}
    joined: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        wants_value = argument.startswith("--") and argument != "--" and "=" not in argument and argument not in flags
        if wants_value and left and not left[0].startswith("--"):
            argument = f"{argument}={left.pop(0)}"
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in ALIASES:
            argument = f"--{ALIASES[name]}{equals}{value}"
        elif not argument.startswith("-") or argument.startswith(("--out=", "--input=", "--output=", "--sessions=")):
            argument = "=".join(map(at_home, argument.split("=", 1)))
        joined.append(argument)
    for option in {each.partition("=")[0] for each in joined} & {*actions} - flags:
        if len({each for each in joined if each.startswith(f"{option}=")}) > 1:
            raise UserError(f"{option} is given twice with different values")
    known, rest = parser.parse_known_intermixed_args(joined)
    settings = parse_overrides(rest)
    if no_settings and settings:
        raise UserError(f"{no_settings}, got --{next(iter(settings))}")
    return known, settings


def beside(out: Path, form: str) -> Path:
    """`out` with the ending of a form of reports; another dot belongs to the name, as in lr-0.1."""
    stem = out.stem if out.suffix[1:] in FORMS else out.name
    return out.with_name(f"{stem}.{form}")


def name(settings: dict[str, Any], key: str, default: str) -> str:
    """Take the setting `key`, one name or path, out of `settings`."""
    value = settings.pop(key, default)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"--{key} must be a name, got {value!r}")
    return value if schemas().get(key, {}).get("role") == "data" else at_home(value)


def names(settings: dict[str, Any], key: str, default: str = "", example: str = "") -> list[str]:
    """Take a list of names out of `settings`: `A,B` or `[A, B]`. Raises UserError for none."""
    entries = _entries(settings.pop(key, default))
    if not entries:
        raise UserError(f"--{key}: give at least one name, as in --{key}={example}")
    return entries


def _entries(value: Any) -> list[str]:
    """`A,B`, `[A, B]` or a list as a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = read_value(value, {"type": ["array"], "items": {"type": "string"}})
        except yaml.YAMLError:
            raise UserError(f"a list is written A,B or [A, B], got {value!r}") from None
    entries = value if isinstance(value, list) else str("" if value is None else value).split(",")
    return [entry.strip() for entry in entries if isinstance(entry, str) and entry.strip()]


def option(settings: dict[str, Any], key: str, default: Any) -> Any:
    """Take an option out of `settings`; properties/schema.yaml says what it may be."""
    value = settings.pop(key, default)
    check(f"--{key}", Given(value), default, {})
    return value


def files(settings: dict[str, Any]) -> list[str]:
    """Take `config_files` out of `settings`: a path as it is, or several: `a.yaml,b.yaml`, `[a.yaml, b.yaml]`.

    RecBole separates them by blanks, which works where each of the files exists.
    """
    value = settings.pop("config_files", None)
    if isinstance(value, str) and value.strip() and Path(at_home(value)).exists():
        return [value]
    paths = []
    for path in _entries(value):
        parts = path.split()
        blanks = not Path(at_home(path)).exists() and all(Path(part).is_file() for part in parts)
        paths += parts if blanks else [path]
    return paths


def directory(settings: dict[str, Any], key: str, file: str) -> str:
    """Take a directory out of `settings`. Raises UserError, before torch is imported, unless `file` is in it."""
    path = name(settings, key, "")
    if not Path(path, file).is_file():
        raise UserError(f"--{key}: {path!r} is not a directory with a {file}")
    return path


def model_and_dataset(settings: dict[str, Any], files: Sequence[str]) -> tuple[str, str]:
    """Take the names of model and data set out of `settings`, else out of config files, else the defaults.

    Raises UserError for a class that only a file names (importing it runs code), and for what `check_early` finds.
    """
    given = read_config_files(files)
    if start := settings.get("init_from") or given.get("init_from", Given(None)).value:
        given = {**read_run(Given(at_home(str(start)))), **given}
    in_file = given.get("model", Given("SIGMA"))
    if "model" not in settings and ":" in str(in_file.value):
        raise in_file.error(f"model {in_file.value!r} is code of its own; to run it, add --model={in_file.value}")
    chosen = {}
    for key, default in {"model": in_file, "dataset": given.get("dataset", Given("ml-100k"))}.items():
        chosen[key] = name(settings, key, default.value)  # no download of ml-100k: RecBole has it
        if "," in chosen[key]:
            raise UserError(f"--{key} must be one name here, got {chosen[key]!r}; compare takes several")
    check_early(chosen["model"], chosen["dataset"], all_settings(files, settings))
    return chosen["model"], chosen["dataset"]
