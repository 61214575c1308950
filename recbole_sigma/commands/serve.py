"""recbole-sigma serve --checkpoint=RUN [--host=ADDRESS] [--port=N] [--sessions=FILE] ...

Recommendations and live sessions over HTTP, from a run directory alone; docs/serving.md describes requests and answers.

  --checkpoint=RUN        a run directory, or a link to one; SIGHUP loads it again without losing a request
  --host=127.0.0.1        the address to listen on; 0.0.0.0 is every one of this machine
  --port=8000             0 takes a free one; the line that is printed names it
  --sessions=FILE         keeps sessions when the process ends, also by kill -9 (SQLite)
  --max_sessions=10000    sessions at the same time
  --session_seconds=3600  that a session is kept without a request
  --max_history=1000      items of a history, and of a session
  --max_histories=100     histories of a request
  --max_k=100             items of a list
  --max_body=1048576      bytes of a request
  --rate=N                requests per second of one client address, after which it gets 429 (0: no limit)
  --threads=N             of the model (1)
  --use_gpu=False         compute on the CPU
  --model=package.module:Class confirms the import of a model of your own

Clients must send the environment variable RECBOLE_SIGMA_API_KEY, where it is set, as Authorization: Bearer KEY.

examples:
  recbole-sigma serve --checkpoint=saved/SIGMA-ml-100k-...
  curl localhost:8000/recommend --json '{"histories": [["50", "181"]], "k": 5}'
  RECBOLE_SIGMA_API_KEY=$(cat key) recbole-sigma serve --checkpoint=current --host=0.0.0.0 --sessions=sessions.db
"""

import os
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from recbole_sigma.commands import options
from recbole_sigma.errors import UserError
from recbole_sigma.inference.serve.limits import Limits

KEY = "RECBOLE_SIGMA_API_KEY"


def main(argv: Sequence[str]) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = options.command_parser(__doc__)
    parser.add_argument("--host", default="127.0.0.1", help=SUPPRESS)
    parser.add_argument("--sessions", type=Path, help=SUPPRESS)
    args, settings = options.parse(parser, argv)
    checkpoint = Path(options.directory(settings, "checkpoint", "config.yaml"))
    limits = Limits(**{name: options.option(settings, name, value) for name, value in asdict(Limits()).items()})
    port, threads = options.option(settings, "port", 8000), options.option(settings, "threads", 1)
    device = None if options.option(settings, "use_gpu", True) else "cpu"
    model = settings.pop("model", None)
    if settings:
        raise UserError(f"serve takes the options of --help, got --{next(iter(settings))}")
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)}: not installed; pip install 'recbole-sigma[serve]'")
    key = os.environ.get(KEY)
    if key is not None and (not key.isascii() or not key.isprintable() or not key or " " in key):
        raise UserError(f"{KEY} must be printable ASCII characters without blanks; unset it to serve without a key")

    from recbole_sigma.inference.recommender import Recommender
    from recbole_sigma.inference.serve.server import serve

    def load() -> Recommender:
        return Recommender.load(checkpoint.resolve(), device, model)  # one run, also if a link changes meanwhile

    serve(load, args.host, port, limits, key, args.sessions, threads)
