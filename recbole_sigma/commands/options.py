"""Arguments that the commands share, each declared once: `--name=value`, `--name value`, lists, names, counts."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from recbole_sigma.config.values import parse_overrides
from recbole_sigma.errors import UserError

PROGRAM = "recbole-sigma"
DEFAULT_MODEL = "SIGMA"
DEFAULT_DATASET = "ml-100k"  # inside RecBole's wheel: the first run needs no download


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def command_parser(command: str, usage: str, description: str, details: str) -> Parser:
    """The parser of one command; `details` is printed below the options: settings, examples."""
    return Parser(
        prog=f"{PROGRAM} {command}",
        usage=f"{PROGRAM} {command} {usage}",
        description=description,
        epilog=details,
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
    known, rest = parser.parse_known_args(joined)
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


def count(settings: dict[str, Any], key: str, default: int) -> int:
    """Take a number of things, from 1 to 10,000, out of `settings`."""
    value = settings.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        raise UserError(f"--{key} must be a whole number from 1 to 10,000, got {value!r}")
    return value


def files(settings: dict[str, Any]) -> list[str]:
    """Take `config_files` out of `settings`: `a.yaml,b.yaml`, or separated by blanks as in RecBole."""
    value = settings.pop("config_files", None)
    entries = value if isinstance(value, list) else str(value or "").replace(",", " ").split()
    return [str(entry) for entry in entries]
