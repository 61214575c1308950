"""recbole-sigma train [--model=NAME] [--dataset=NAME] [--config_files=A,B] [--SETTING=VALUE ...]

Train one model on one data set; print its metrics and, last, the run directory.

  --model=NAME             a model, as the papers write it, or package.module:Class (SIGMA)
  --dataset=NAME           a folder in data_path, or a name of `recbole-sigma datasets`: downloaded if missing (ml-100k)
  --data_path=FOLDER       where data sets are (dataset/)
  --config_files=A,B       YAML files of settings; a later file wins over an earlier, the command line over all
  --resume=RUN_DIR         resume an interrupted run after its last complete epoch
  --init_from=RUN_DIR      start from the weights of another run, on newer data with new items; its model, data set
                           and model settings are the defaults
  --distill_from=RUN_DIR   learn from the softmax of a trained run on the same items, of any model, too
  --members=[RUN,RUN]      with --model=Ensemble: trained runs as one model
  --SETTING=VALUE          any setting, read as YAML: `recbole-sigma models NAME` has a model's, properties/ has all

examples:
  recbole-sigma train
  recbole-sigma train --model=Mamba4Rec --dataset=amazon-beauty --data_path=data
      reads data/amazon-beauty/amazon-beauty.inter
  recbole-sigma train --model=SIGMA --form=released --learning_rate=0.0005 --use_gpu=False
  recbole-sigma train --config_files=base.yaml,tuned.yaml --epochs=50
  recbole-sigma train --nproc=2
      two processes train together; torchrun --nproc-per-node=2 run_recbole_sigma.py does the same
  recbole-sigma train --resume=saved/SIGMA-ml-100k-20260101-120000-abcdef
  recbole-sigma train --init_from=saved/SIGMA-shop-... --dataset=shop-june --epochs=5
"""

from collections.abc import Sequence

from recbole_sigma.commands import options
from recbole_sigma.commands.terminal import table
from recbole_sigma.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Train or resume; print metrics and, last, the run directory."""
    _, settings = options.parse(options.command_parser(__doc__), argv)
    files = options.files(settings)
    if "resume" in settings:
        if files:
            raise UserError("--config_files: a resumed run keeps the settings in its config.yaml; leave it out")
        folder = options.directory(settings, "resume", "config.yaml")
        from recbole_sigma.quick_start import resume

        result = resume(folder, settings)
    else:
        model, dataset = options.model_and_dataset(settings, files)
        from recbole_sigma.quick_start import run  # takes seconds: a mistake above is reported before

        result = run(model, dataset, config_files=files, settings=settings)

    from recbole_sigma.evaluation.metrics import metric_title

    names = result.valid or result.test
    rows = [(metric_title(name), result.valid.get(name, "-"), result.test.get(name, "-")) for name in names]
    print(table(["", "valid", "test"], rows))
    print(result.folder)
