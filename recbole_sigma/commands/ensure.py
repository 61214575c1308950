"""`recbole-sigma ensure DIRECTORY`: what `compare` and `experiment` start for each run; not listed in the help."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_sigma.commands import options
from recbole_sigma.config.values import Given, read_config_file


def main(argv: Sequence[str]) -> None:
    """Complete the run that `DIRECTORY/settings.yaml` describes and print its run directory."""
    parser = options.command_parser(
        "ensure", "DIRECTORY", "Complete the run that DIRECTORY/settings.yaml describes.", ""
    )
    parser.add_argument("directory")
    path = Path(parser.parse_args(argv).directory).absolute()
    directory = str(path)
    from recbole_sigma.experiment.pool import ensure

    file = f"{directory}/settings.yaml"
    model = str(read_config_file(file).get("model", Given("")).value)
    # What result.json records as the command: one that repeats this run and can be typed. Paths are quoted where YAML
    # or the list of files would read something else.
    if not re.fullmatch(r"[\w./-]+", directory):
        file, directory = (json.dumps(value, ensure_ascii=False) for value in ([file], directory))
    sys.argv = ["recbole-sigma", "train", f"--config_files={file}", f"--checkpoint_dir={directory}"]
    if ":" in model:  # a class of the user's own, which `train` does not import because a file says so
        sys.argv.append(f"--model={model}")
    print(ensure(path).folder)
