"""`recbole-sigma ensure DIRECTORY`: what `compare` and `experiment` start for each run; not listed in the help."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_sigma.commands import options
from recbole_sigma.config.values import Given, parse_overrides, read_config_file


def main(argv: Sequence[str]) -> None:
    """Complete the run that `DIRECTORY/settings.yaml` describes and print its run directory."""
    parser = options.command_parser(
        "ensure", "DIRECTORY", "Complete the run that DIRECTORY/settings.yaml describes.", ""
    )
    parser.add_argument("directory")
    directory = str(Path(parser.parse_args(argv).directory).absolute())
    from recbole_sigma.experiment.pool import ensure

    file = f"{directory}/settings.yaml"
    # What result.json records as the command: one that repeats this run and can be typed.
    repeat = [_option("config_files", [file] if {" ", ","} & {*file} else file), _option("checkpoint_dir", directory)]
    model = read_config_file(file).get("model", Given("")).value
    if ":" in str(model):  # a class of the user's own, which `train` does not import because a file says so
        repeat.append(_option("model", model))
    sys.argv = ["recbole-sigma", "train", *repeat]
    print(ensure(directory).folder)


def _option(name: str, value: Any) -> str:
    """`--name=value`, quoted where YAML would read another value."""
    option = f"--{name}={value}"
    if isinstance(value, list) or parse_overrides([option])[name] != value:
        option = f"--{name}={json.dumps(value, ensure_ascii=False)}"
    return option
