"""The command line: `recbole-sigma <command>`; `run_recbole_sigma.py` is its `train`.

Exit status: 0 done, 1 a bug, 2 a mistake of the user's (one line on stderr), 130 interrupted, 141
whoever reads the output is gone.
"""

import errno
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from recbole_sigma import __version__
from recbole_sigma.errors import Interrupted, UserError, did_you_mean, one_line, out_of_memory

_PROGRAM = "recbole-sigma"
COMMANDS = {
    "train": "train and evaluate one model",
    "datasets": "list the data sets that are known by name, or get one",
    "models": "list the models, or one model's settings",
    "compare": "train models on data sets with several seeds and report them side by side",
    "experiment": "an experiment of SIGMA's paper, or your own",
    "tune": "choose settings on validation, by Hyperopt or Ray Tune",
    "recommend": "items for a history, or for a file of histories, by a trained model",
    "serve": "recommendations and live sessions over HTTP",
    "export": "a trained model as ONNX or torch.export file, with a model card",
    "convert": "your own CSV, JSON lines or Parquet file as a data set",
    "report": "a table of recorded runs, with significance, plots and all that is needed to cite it",
    "env": "versions, devices, and whether the kernels work",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. `argv` defaults to the process's arguments."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's notice counts as Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # characters that the terminal's encoding does not have
    try:
        with out_of_memory():
            _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a closed pipe is noticed here rather than when Python exits
        return 0
    except SystemExit as stop:  # of argparse, after --help
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of our output is gone: nothing to say, and nothing left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        status, message = 2, f"error: {error}"
    except KeyboardInterrupt as interrupt:
        resume = f"; resume with: {interrupt.how}" if isinstance(interrupt, Interrupted) else ""
        status, message = 130, f"interrupted{resume}"
    except OSError as error:
        full = error.errno == errno.ENOSPC and error.filename is None  # a file would name itself
        if full:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status, message = 1, f"error: {f'the output cannot be written: {error.strerror}' if full else _bug(error)}"
    except Exception as error:
        status, message = 1, f"error: {_bug(error)}"
    print(f"{_PROGRAM}: {message}", file=sys.stderr)
    return status


def _dispatch(argv: list[str]) -> None:
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(f"usage: {_PROGRAM} <command> [options]\n\nState-space sequential recommenders inside RecBole.\n")
        print("\n".join(f"{name:12} {summary}" for name, summary in COMMANDS.items()))
        print(f"\n'{_PROGRAM} <command> --help' says more about one command.")
    elif command == "--version":
        print(f"{_PROGRAM} {__version__}")
    elif command in COMMANDS or command == "ensure":  # what `compare` and `experiment` start for each run
        importlib.import_module(f"recbole_sigma.commands.{command}").main(rest)
    else:
        wrong = f"unknown command {command!r}{did_you_mean(command, COMMANDS)}"
        raise UserError(f"{wrong}; the commands are {', '.join(COMMANDS)}")


def _bug(error: Exception) -> str:
    """A line about `error`, whose traceback is written to a file in the run directory, or here."""
    file = Path(getattr(error, "run_directory", "."), f"{_PROGRAM}-error-{os.getpid()}.txt")
    try:
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        details = f"details in {file}"
    except OSError:
        details = f"at {traceback.extract_tb(error.__traceback__)[-1]}"
    message = UserError(f"{type(error).__name__}: {one_line(error)}")
    return f"this is a bug or a case we do not handle ({message}); {details}"


if __name__ == "__main__":
    sys.exit(main())
