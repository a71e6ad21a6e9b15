"""Where tests find things."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
DATA = ROOT / "tests" / "data"
# Kept checkpoints; tests/data/README.md says where they come from.
TOY, TOY_STEPS = DATA / "toy", (0, 750, 1350)
TOY_IOI, TOY_IOI_STEP = DATA / "toy_ioi", 1700
# Downloads that are not part of the repository; tests that read them skip where they are absent.
PYTHIA_TOKENIZER = ROOT.parent / "shared" / "pythia_tokenizer"
PYTHIA_EVALS = ROOT.parent / "shared" / "pythia_evals"
PEER_FILES = ROOT.parent / "shared" / "peer_files"
