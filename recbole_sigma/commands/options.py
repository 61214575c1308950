"""Arguments that the commands share, each declared once: `--name=value`, `--name value`, lists, names."""

import argparse
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from recbole_sigma.config.schema import check
from recbole_sigma.config.values import Given, parse_overrides, properties_path, read_config_files
from recbole_sigma.errors import UserError, did_you_mean

DEFAULT_MODEL = "SIGMA"
DEFAULT_DATASET = "ml-100k"  # inside RecBole's wheel: the first run needs no download


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def command_parser(help_text: str | None) -> Parser:
    """The parser of one command, whose help is its module's docstring: usage, description, then settings, examples."""
    usage, description, *details = (help_text or "").split("\n\n")
    return Parser(
        usage=usage,
        description=description,
        epilog="\n\n".join(details),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The parser's own options, and every other `--name=value` or `--name value` as a setting.

    Settings are joined to their values before argparse sees them: it would take the `1` of `--epochs 1` for a
    positional argument. Options that take no value (`--groups`) stay alone.
    """
    flags = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
    joined: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        wants_value = argument.startswith("--") and argument != "--" and "=" not in argument and argument not in flags
        if wants_value and left and not left[0].startswith("--"):
            argument = f"{argument}={left.pop(0)}"
        joined.append(argument)
    known, rest = parser.parse_known_intermixed_args(joined)
    return known, parse_overrides(rest)


def name(settings: dict[str, Any], key: str, default: str) -> str:
    """Take the setting `key`, one name, out of `settings`."""
    value = settings.pop(key, default)
    if not isinstance(value, str) or not value:
        raise UserError(f"--{key} must be a name, got {value!r}")
    return value


def names(settings: dict[str, Any], key: str, default: str = "", example: str = "") -> list[str]:
    """Take a list of names out of `settings`: `A,B` or `[A, B]`. Raises UserError for none."""
    value = settings.pop(key, default)
    entries = value if isinstance(value, list) else str(value or "").split(",")
    entries = [entry.strip() for entry in entries if isinstance(entry, str) and entry.strip()]
    if not entries:
        raise UserError(f"--{key}: give at least one name, as in --{key}={example}")
    return entries


def option(settings: dict[str, Any], key: str, default: Any) -> Any:
    """Take an option out of `settings`; properties/schema.yaml says what it may be."""
    value = settings.pop(key, default)
    check(f"--{key}", Given(value), default, {})
    return value


def files(settings: dict[str, Any]) -> list[str]:
    """Take `config_files` out of `settings`: `a.yaml,b.yaml`, or separated by blanks as in RecBole."""
    value = settings.pop("config_files", None)
    return [str(file) for file in (value if isinstance(value, list) else str(value or "").replace(",", " ").split())]


def model_and_dataset(settings: dict[str, Any], files: Sequence[str]) -> tuple[str, str]:
    """Take the names of model and data set out of `settings`, else out of config files, else the defaults.

    Raises UserError for a class that only a file names, because importing it runs code, and for names that are no
    setting: both before RecBole is imported, which takes seconds.
    """
    given = read_config_files(files)
    in_file = given.get("model", Given(DEFAULT_MODEL))
    if "model" not in settings and ":" in str(in_file.value):
        raise in_file.error(f"model {in_file.value!r} is code of its own; to run it, add --model={in_file.value}")
    model = name(settings, "model", in_file.value)
    dataset = name(settings, "dataset", given.get("dataset", Given(DEFAULT_DATASET)).value)
    refuse_unknown({**given, **{key: Given(value) for key, value in settings.items()}}, model)
    return model, dataset


def refuse_unknown(given: Mapping[str, Given], model: str) -> None:
    """Raise a UserError for a setting that no file of RecBole's or ours names; Config knows better, and later.

    A class of the user's own brings settings that only Config can know: for `package.module:Class` nothing is refused.
    """
    spec = find_spec("recbole")  # found without being imported
    if ":" in model or spec is None or not spec.submodule_search_locations:
        return
    recbole = Path(spec.submodule_search_locations[0])
    lists = (recbole / "utils" / "argument_list.py").read_text(encoding="utf-8")
    known, of_other_models = {"model", "dataset", *re.findall(r"'(\w+)'", lists)}, set[str]()
    for file in [*(recbole / "properties").rglob("*.yaml"), *properties_path().rglob("*.yaml")]:
        names = re.findall(r"^(\w+)\s*:", file.read_text(encoding="utf-8"), re.MULTILINE)
        (of_other_models if file.parent.name == "model" and file.stem != model else known).update(names)
    for key, value in given.items():
        if key not in known | of_other_models:
            raise value.error(f"unknown setting {key!r}{did_you_mean(key, known)}")
