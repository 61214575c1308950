"""`recbole-sigma env`: versions, devices, and whether the kernels work."""

import json
from collections.abc import Sequence

from recbole_sigma.commands import options
from recbole_sigma.errors import UserError

_DETAILS = """
examples:
  recbole-sigma env
  recbole-sigma env --json
      for a program, or for the report of a problem
"""


def main(argv: Sequence[str]) -> None:
    """Print what a run would find on this machine."""
    parser = options.command_parser(
        "env",
        "[--json]",
        "Show what a run would find on this machine: versions, devices, and whether scan and convolution work on each "
        "(called on a few numbers and compared with their reference); where not, the command that fixes it.",
        _DETAILS,
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    args, settings = options.parse(parser, argv)
    if settings:
        raise UserError(f"env takes --json, got --{next(iter(settings))}")
    from recbole_sigma.environment import as_text, environment

    found = environment()
    print(json.dumps(found, indent=2) if args.json else as_text(found))
