"""recbole-sigma ensure DIRECTORY

Complete the run that DIRECTORY/settings.yaml describes: what `compare` and `experiment` start for each run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_sigma.commands import options
from recbole_sigma.config.values import Given, read_config_file


def main(argv: Sequence[str]) -> None:
    """Print the run directory."""
    parser = options.command_parser(__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(argv).directory.absolute()
    from recbole_sigma.experiment.pool import ensure

    # What result.json records as the command: one that repeats this run and can be typed.
    file = str(directory / "settings.yaml")
    sys.argv = ["recbole-sigma", "train", f"--config_files={file}"]
    model = str(read_config_file(file).get("model", Given("")).value)
    if ":" in model:  # a class of the user's own, which `train` does not import because a file says so
        sys.argv.append(f"--model={model}")
    print(ensure(directory).folder)
