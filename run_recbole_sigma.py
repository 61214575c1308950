"""`recbole-sigma train` for a checkout: python run_recbole_sigma.py --model=SIGMA --dataset=ml-100k"""

import sys

from recbole_sigma.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
