"""Train a toy family: small GPT-NeoX checkpoints that everything runs on by default.

    python make_toy_checkpoints.py -c configs/toy_family.yml
    python make_toy_checkpoints.py -c configs/toy_ioi_family.yml
    python make_toy_checkpoints.py -c configs/toy_family.yml seed=1 folder=model_cache/toy_seed1

It trains on the CPU, from scratch, in two to five minutes, and writes `model_cache/toy/step{n}` (save_pretrained
format, with the tokenizer), `evaluation.csv` (what each checkpoint can do on held-out prompts) and, last,
`family.json`. If you stop it, the same command goes on where it stopped; a finished family is left as it is. Exit
codes: 0 done, 2 bad input, 130 Ctrl-C.
"""

import sys
from collections.abc import Sequence

from circuits_over_time.utils.config.command_line import read_command_line, script
from circuits_over_time.utils.toy.keys import FamilyConfig


@script
def main(argv: Sequence[str] | None = None) -> int:
    config, _ = read_command_line("make_toy_checkpoints.py", FamilyConfig, argv)
    from circuits_over_time.utils.toy.family import train_family  # Imports torch.

    train_family(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
