"""Train the toy family: small GPT-NeoX checkpoints that everything runs on by default.

    python make_toy_checkpoints.py -c configs/toy_family.yml
    python make_toy_checkpoints.py -c configs/toy_ioi_family.yml
    python make_toy_checkpoints.py -c configs/toy_family.yml seed=1 folder=model_cache/toy_seed1

On the CPU, from scratch, in two to five minutes: `model_cache/toy/step{n}` (save_pretrained form, with tokenizer),
`evaluation.csv` (what each checkpoint can do on held-out prompts) and `family.json` (written last). A training that was
stopped goes on where it was; a finished family is found again. Exit codes: 0 done, 2 bad input, 130 Ctrl-C.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.config.keys import load_config
from utils.errors import UserError
from utils.progress import configure_logging
from utils.toy.family import FamilyConfig, train_family


def main(argv: Sequence[str] | None = None) -> int:
    """Read the config, train, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("-c", "--config", type=Path, required=True, help="YAML config, e.g. configs/toy_family.yml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys laid over the config's")
    arguments = parser.parse_intermixed_args(argv)
    configure_logging()
    try:
        train_family(load_config(FamilyConfig, arguments.config, arguments.overrides))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
