"""recbole-sigma export --checkpoint=RUN --out=DIRECTORY [--format=onnx|torch] [--k=N] ...

Write a trained model for other runtimes: item numbers of histories in, the best items and their scores out.

  --checkpoint=RUN             a run directory
  --out=DIRECTORY              a new directory: the model, its weights, settings, vocabulary, and README.md, a model
                               card; in the layout of Hugging Face's hub, which is not contacted
  --format=onnx|torch          model.onnx for ONNX runtimes (pip install 'recbole-sigma[export]'), or model.pt2 of
                               torch.export (onnx)
  --k=N                        items per history (10)
  --exclude_seen=False         may recommend the items of the history, too
  --model=package.module:Class confirms the import of a model of your own

examples:
  recbole-sigma export --checkpoint=saved/SIGMA-ml-100k-... --out=exported/sigma
  recbole-sigma export --checkpoint=RUN --format=torch --k=100 --out=exported/sigma-torch
      docs/export.md, and README.md in DIRECTORY, show how the files are used
"""

from collections.abc import Sequence
from pathlib import Path

from recbole_sigma.commands import options
from recbole_sigma.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Write the directory; print how exact it is and, last, its name."""
    _, settings = options.parse(options.command_parser(__doc__), argv)
    checkpoint = Path(options.directory(settings, "checkpoint", "config.yaml"))
    if "out" not in settings:
        raise UserError("export needs --out=DIRECTORY, a new directory")
    out = Path(options.name(settings, "out", ""))
    form = options.option(settings, "format", "onnx")
    k, exclude_seen = options.option(settings, "k", 10), options.option(settings, "exclude_seen", True)
    model = settings.pop("model", None)
    if settings:
        raise UserError(f"export takes the options of --help, got --{next(iter(settings))}")

    from recbole_sigma.inference.export import export

    difference = export(checkpoint, out, form, k, exclude_seen, model)
    print(f"largest difference of a score from our own, relative above 1: {difference:.1e}\n{out}")
