"""What training libraries leave on disk: which folders are read, converted by one command, or refused by name.

A folder whose weights can be read needs no record here. The others are told apart by the files that only one library
writes, and each refusal says what turns them into a folder that is read. Nothing is ever converted or overwritten
unasked: names alone do not tell how a library orders the rows of its matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base.errors import shortened

_CONFIG = "copy the model's config.json there"


@dataclass(frozen=True)
class TrainingFolder:
    """What one library leaves at a step.

    Attributes:
        marks: patterns of files; it is the library's folder if each matches one.
        holds: the same in words.
        way_out: what makes a folder that is read, with {folder}, its {parent} and {name}, and the first {file} that
            matches. `OUT` is a new folder.
    """

    library: str
    marks: tuple[str, ...]
    holds: str
    way_out: str

    def matches(self, folder: Path) -> bool:
        """Whether the folder holds all of the marks."""
        return all(any(folder.glob(mark)) for mark in self.marks)

    def refusal(self, folder: Path) -> str:
        """One line: whose folder it is, which of its files are there, and the way out."""
        first = min(folder.glob(self.marks[0])).relative_to(folder)
        way_out = self.way_out.format(folder=folder, parent=folder.parent, name=folder.name, file=first.parts[0])
        return f"{folder}: is {self.library}'s (it holds {first}); {way_out}"


READ: tuple[tuple[str, str, str], ...] = (
    (
        "`save_pretrained`, Trainer",
        "`model.safetensors` or `pytorch_model.bin`, whole or in shards, and `config.json`",
        "nothing",
    ),
    (
        "torch.compile, DDP, FSDP, activation checkpointing",
        "names with `_orig_mod.`, `module.`, `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.`",
        "nothing: these parts of names are left out",
    ),
    (
        "PEFT (LoRA, DoRA, rsLoRA)",
        "`adapter_config.json`",
        "`pip install 'circuits-over-time[adapters]'`; the base model must be on disk",
    ),
    (
        "accelerate `save_state`",
        "`model.safetensors`, `optimizer.bin`, `random_states_0.pkl`",
        f"{_CONFIG}; name the folder `step{{n}}`",
    ),
    (
        "Lightning",
        "`epoch=1-step=10.ckpt`",
        "a folder `step{n}` for each file, with the model's config.json; the module's prefix (`model.`) is left out",
    ),
)
"""Folders that are read: library, what is there, what to do. For the documentation."""

TRAINING_FOLDERS: tuple[TrainingFolder, ...] = (
    TrainingFolder(
        "litgpt",
        ("lit_model.pth",),
        "`lit_model.pth` (a `config.json` there may be that of the tokenizer's model)",
        "run: litgpt convert_from_litgpt {folder} OUT, rename its model.pth to pytorch_model.bin and "
        "copy the config.json of the model that was trained there",
    ),
    TrainingFolder(
        "the GPT-NeoX library",
        ("layer_*-model_*-model_states.pt",),
        "`layer_00-model_00-model_states.pt`, ...",
        "run its own converter, with transformers 4: python tools/ckpts/convert_neox_to_hf.py --input_dir {folder} "
        "--config_file CONFIG.yml --output_dir OUT",
    ),
    TrainingFolder(
        "Megatron",
        ("mp_rank_*/model_*.pt",),
        "`mp_rank_00/model_optim_rng.pt`",
        "export it with Megatron Bridge (AutoBridge.export_ckpt)",
    ),
    TrainingFolder(
        "DeepSpeed",
        ("*mp_rank_*_states.pt",),
        "`mp_rank_00_model_states.pt` in `global_step{n}`, `zero_to_fp32.py` beside it",
        f"run: python {{parent}}/zero_to_fp32.py {{parent}} OUT -t {{name}}, and {_CONFIG}",
    ),
    TrainingFolder(
        "the Trainer with DeepSpeed",
        ("global_step*/*mp_rank_*_states.pt",),
        "`checkpoint-{n}/global_step{n}/...`",
        "run: python {folder}/zero_to_fp32.py {folder} {folder} -t {file}",
    ),
    TrainingFolder(
        "the Trainer with sharded FSDP",
        ("pytorch_model_fsdp_*",),
        "`pytorch_model_fsdp_0/`",
        "run: accelerate merge-weights {folder}/{file} {folder}",
    ),
    TrainingFolder(
        "OLMo-core",
        ("model_and_optim",),
        "`model_and_optim/`, `.metadata.json`, an experiment's `config.json` without `model_type`",
        "run its own converter: python src/examples/huggingface/convert_checkpoint_to_hf.py -i {folder} -o {folder}-hf",
    ),
    TrainingFolder(
        "nanotron",
        ("model_config.json", "model"),
        "`model_config.json`, `model/` with a file for each tensor",
        "run its own converter: torchrun --nproc_per_node=1 examples/llama/convert_nanotron_to_hf.py "
        "--checkpoint_path={folder} --save_path=OUT",
    ),
    TrainingFolder(
        "Megatron",
        ("*.distcp", "metadata.json"),
        "`iter_{n}/` with `metadata.json` and `*.distcp`",
        "export it with Megatron Bridge (AutoBridge.export_ckpt)",
    ),
    TrainingFolder(
        "torch.distributed.checkpoint",
        ("*.distcp",),
        "`.metadata`, `__0_0.distcp` (torchtitan and others)",
        "convert it by the library that wrote it (torchtitan: its to_hf, which also reorders q and k), or, if it holds "
        "the names of transformers, run: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} "
        f"{{folder}}/pytorch_model.bin, and {_CONFIG}",
    ),
    TrainingFolder(
        "nanochat",
        ("model_[0-9]*.pt",),
        "`model_000500.pt`",
        "convert it to a model of transformers, and save that with save_pretrained as a folder step{{n}}",
    ),
    TrainingFolder(
        "Lightning",
        ("*.ckpt",),
        "`epoch=1-step=10.ckpt` beside others",
        "make a folder step{{n}} for each file, and copy the model's config.json into it",
    ),
)
"""Folders that are not read as they are. The first that matches counts."""


def of_library(folder: Path) -> str | None:
    """Whose folder this is, if it is a training library's that is not read as it is: one line with the way out."""
    return next((one.refusal(folder) for one in TRAINING_FOLDERS if one.matches(folder)), None)


def contents(folder: Path) -> str:
    """What is in a folder, for errors."""
    return shortened(sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")), 5) or "nothing"
