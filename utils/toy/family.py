"""A trained toy family on disk: training with checkpoints, resumed after a stop, found again when done.

    model_cache/toy/step{n}/           weights, model config and tokenizer, as save_pretrained writes them
                    evaluation.csv     step, skill, value: held-out results of every checkpoint
                    family.json        the manifest, written last: config, steps, tokens per step, hashes, versions
                    training_state.pt  only while training is unfinished: what it resumes from

A checkpoint's folder is written under another name and then renamed, so one that exists is complete. The batch of a
step depends on the seed and the step alone, so a training that is stopped and started again ends with the same bytes as
one that was not.
"""

import hashlib
import io
import json
import logging
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from ..base.background import threads
from ..base.errors import UserError
from ..base.files import atomic_write, file_sha256, locked, read_json, require_writable, write_json
from ..base.progress import duration
from ..config.keys import result_settings
from .batches import TextSource
from .evaluation import Examination
from .keys import FamilyConfig
from .positions import position_texts
from .text import vocabulary_texts
from .tokenizer import build_tokenizer
from .training import Trainer, new_model

log = logging.getLogger(__name__)

MANIFEST, EVALUATION, STATE = "family.json", "evaluation.csv", "training_state.pt"


def train_family(config: FamilyConfig) -> Path:
    """Train the family, finish an interrupted training, or find that the family is there; returns its folder.

    It is a UserError if the folder holds a family of another config, or the beginning of one, without `overwrite`.
    """
    require_writable(config.folder, "folder")
    lock = config.folder / ".lock"
    with locked(lock, "folder", timeout=0) as free:
        if free:
            return _Training(config).run()
    log.info("%s: another process is training it; waiting", config.folder)
    with locked(lock, "folder"):
        return _Training(config).run()


class _Training:
    def __init__(self, config: FamilyConfig) -> None:
        self.config = config
        texts = (*vocabulary_texts(), *(position_texts() if config.text.positions else ()))
        self.tokenizer = build_tokenizer(texts, config.model.n_positions)
        # What the weights depend on: the config, and as `text` a hash of the vocabulary and the sentences.
        digest = hashlib.sha256(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        text = TextSource(config.text, self.tokenizer, seed=0)
        for step in range(3):
            batch = text.batch(step)
            digest.update(batch.tokens.numpy().tobytes() + batch.learned.numpy().tobytes())
        self.settings: dict[str, Any] = {**result_settings(config), "text": digest.hexdigest()[:16]}

    def run(self) -> Path:
        folder = self.config.folder
        for leftover in folder.glob(".step*.tmp"):
            shutil.rmtree(leftover)
        if self.config.overwrite:
            # The manifest first: without it nothing takes the rest for complete.
            for name in (MANIFEST, STATE, EVALUATION):
                (folder / name).unlink(missing_ok=True)
            for path in folder.glob("step*"):
                if path.name.removeprefix("step").isdigit():
                    shutil.rmtree(path)
        if (folder / MANIFEST).is_file():
            manifest = read_json(folder / MANIFEST) or {}
            if not isinstance(manifest.get("settings"), dict) or not manifest.get("steps"):
                raise UserError(f"{folder / MANIFEST} is damaged, or of a family from elsewhere; pass another folder")
            self._refuse_other(manifest["settings"], "holds a family")
            log.info("%s: found, %d checkpoints up to step %d", folder, len(manifest["steps"]), manifest["steps"][-1])
            return folder
        state: dict[str, Any] | None = None
        if (folder / STATE).is_file():
            try:
                state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
                self._refuse_other(state["settings"], "holds an unfinished training")
            except (OSError, RuntimeError, EOFError, UnpicklingError, KeyError, TypeError):
                raise UserError(f"{folder / STATE} is damaged; pass overwrite=true to train again") from None
            log.info("%s: resuming after step %d", folder, state["step"])
        elif any(folder.glob("step*")):
            raise UserError(
                f"{folder} holds checkpoints but no {MANIFEST} and no {STATE} to go on from; "
                "pass overwrite=true or another folder"
            )
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]), threads(self.config.threads):  # Afterwards both are as before.
            torch.manual_seed(self.config.seed)
            evaluation = self._train(state)
        self._finish(evaluation)
        log.info("%s: finished in %s", folder, duration(time.monotonic() - began))
        return folder

    def _train(self, state: dict[str, Any] | None) -> list[dict[str, Any]]:
        config = self.config
        trainer = Trainer(config.optimizer, new_model(config.model, len(self.tokenizer)))
        text = TextSource(config.text, self.tokenizer, config.seed)
        examination = Examination(self.tokenizer, positions=config.text.positions > 0)
        start, evaluation = 0, []
        if state is not None:
            trainer.restore(state["trainer"])
            start, evaluation = state["step"], state["evaluation"]
        bar = tqdm(range(start, config.optimizer.steps + 1), desc=str(config.folder), unit="step", disable=None)
        for step in bar:
            if step in config.steps:
                # The checkpoint that a training resumes at has been examined, but perhaps not written.
                if state is None or step > start:
                    skills = examination.results(trainer.model).items()
                    evaluation += [{"step": step, "skill": skill, "value": value} for skill, value in skills]
                    now = {"step": step, "settings": self.settings, "evaluation": evaluation}
                    torch.save(now | {"trainer": trainer.state()}, buffer := io.BytesIO())
                    # Before the checkpoint's folder: a training that stops between the two writes it from this state.
                    atomic_write(config.folder / STATE, buffer.getvalue())
                self._save_checkpoint(step, trainer)
                latest = {row["skill"]: f"{row['value']:.2f}" for row in evaluation}
                learned = f"ioi {latest['ioi_accuracy']}, induction {latest['induction_accuracy']}"
                bar.set_postfix_str(learned)
                if bar.disable:
                    log.info("%s: step %d of %d; %s", config.folder, step, config.optimizer.steps, learned)
            if step < config.optimizer.steps:
                trainer.step(step, text.batch(step))
        return evaluation

    def _save_checkpoint(self, step: int, trainer: Trainer) -> None:
        checkpoint = self.config.folder / f"step{step}"
        if checkpoint.is_dir():
            return
        temporary = self.config.folder / f".step{step}.tmp"
        trainer.model.save_pretrained(temporary)
        self.tokenizer.save_pretrained(temporary)
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, checkpoint)

    def _finish(self, evaluation: list[dict[str, Any]]) -> None:
        config, folder = self.config, self.config.folder
        table = pd.DataFrame(evaluation)
        atomic_write(folder / EVALUATION, table.to_csv(index=False, lineterminator="\n").encode())
        final = {row["skill"]: row["value"] for row in evaluation}
        for skill, value in final.items():
            log.info("%s after %d steps: %s %.3f", folder, config.optimizer.steps, skill, value)
        packages = ("torch", "transformers", "tokenizers", "safetensors")
        manifest = {
            "complete": True,
            "steps": config.steps,
            # Places in a batch, as Pythia counts tokens; a few are padding.
            "tokens_per_step": config.text.rows * config.text.width,
            "seed": config.seed,
            # Leaves out where and how it was run, so that the same family is the same bytes in any folder.
            "config": config.model_dump(mode="json", exclude={"folder", "overwrite"}),
            "settings": self.settings,
            "vocabulary": len(self.tokenizer),
            "evaluation": final,
            "sha256": {step: file_sha256(folder / f"step{step}" / "model.safetensors") for step in config.steps},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        }
        write_json(folder / MANIFEST, manifest)
        (folder / STATE).unlink()

    def _refuse_other(self, found: dict[str, Any], what: str) -> None:
        asked = self.settings
        differing = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
        if differing:
            how = ", ".join(f"{key}={found.get(key)} (this run asks for {asked.get(key)})" for key in differing)
            folder = self.config.folder
            raise UserError(f"{folder} {what} with {how}; pass overwrite=true or another folder (folder=...)")
