"""recbole-sigma report RUN_DIR ... [--format=md|html|csv|tex] [--out=FILE] [--groups] [--masked] [--user=USER]

Recorded runs side by side. Reads their directories; trains nothing.

examples:
  recbole-sigma report saved
      the table of all runs in saved/, on the terminal
  recbole-sigma report saved/SIGMA-* saved/SASRec-* --out=results/beauty.html --title="amazon-beauty, 3 seeds"
      one page with plots; .md has its plots beside it, .csv full precision, .tex a table (booktabs)
  recbole-sigma report saved --format=md --groups
  recbole-sigma report saved --user=196
"""

from collections.abc import Sequence
from pathlib import Path

from recbole_sigma.commands import options
from recbole_sigma.config.values import command_line
from recbole_sigma.errors import UserError, did_you_mean


def main(argv: Sequence[str]) -> None:
    """Print a summary of recorded runs, or write their report."""
    parser = options.command_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run directory, or a directory of such")
    parser.add_argument("--format", metavar="NAME", help="md, html, csv or tex (the ending of FILE)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (the text itself is printed)")
    parser.add_argument("--title", default="", metavar="TEXT", help="heading (Runs on DATASET)")
    parser.add_argument("--k", type=int, default=10, metavar="N", help="metrics at N (10)")
    parser.add_argument("--groups", action="store_true", help="also by history length, target's frequency, model's age")
    parser.add_argument("--masked", action="store_true", help="print the ranks without seen items, too")
    parser.add_argument("--bounds", metavar="A,B", help="other groups: 10,50 is 0-10, 10-50, 50+")
    parser.add_argument("--user", metavar="USER", help="a user's history, each model's list (terminal, md, html)")
    parser.add_argument("--model", metavar="CLASS", help="package.module:Class of yours that a case study may import")
    args, _ = options.parse(parser, argv, no_settings="report takes run directories and the options of --help")
    form = args.format or (args.out.suffix.lstrip(".") if args.out else None)
    if form not in (*options.FORMS, None):
        name = "--format" if args.format else f"--out={args.out}: the ending"
        hint = did_you_mean(form, options.FORMS)
        raise UserError(f"{name} must be one of {', '.join(options.FORMS)}, got {form!r}{hint}")
    try:
        bounds = [int(bound) for bound in (args.bounds or ("5,20" if args.groups else "")).split(",") if bound]
    except ValueError:
        raise UserError(f"--bounds must be whole numbers with commas, as 5,20; got {args.bounds!r}") from None
    if args.k < 1:
        raise UserError(f"--k must be at least 1, got {args.k}")
    for path in args.runs:
        if not Path(path).is_dir():
            raise UserError(f"{path}: there is no such directory")
    from recbole_sigma.report.render import check_report, render, report_of, summary, write_report
    from recbole_sigma.runs.reader import read_runs

    if form:
        check_report(args.out, form)
    if args.model:
        from recbole_sigma.registry import find_model

        for model in args.model.split(","):
            find_model(model)
    report = report_of(read_runs(args.runs), args.title, command_line(), args.k, bounds, args.user, args.masked)
    if args.out and form:
        write_report(report, args.out, form)
        print(f"{summary(report)}\n\n{args.out}")
    else:
        print(render(report, form).rstrip("\n") if form else summary(report))
