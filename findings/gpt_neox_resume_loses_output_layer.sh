#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0, accelerate 1.15.0): a GPT-NeoX training that the Trainer resumes does not get its
# output layer back.
#
# A checkpoint of the Trainer holds the output layer under its old name, `embed_out.weight`, while the model calls it
# `lm_head`. `from_pretrained` translates the name. `Trainer.train(resume_from_checkpoint=...)` does not: it loads the
# other tensors, leaves `lm_head` as the new model was initialised, logs a warning about missing keys and trains on.
# So every checkpoint after a resumed stop belongs to another model than the one before it.
#
# Output seen:
#   saved as: ['embed_out.weight']
#   resumed: embedding True, output layer False, as initialised True
#   from_pretrained: output layer True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee seen.txt
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainingArguments

config = GPTNeoXConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16,
)
rows = [{"input_ids": torch.arange(i, i + 8) % 32, "labels": torch.arange(i, i + 8) % 32} for i in range(32)]
arguments = TrainingArguments(
    "run", max_steps=2, save_steps=2, per_device_train_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True
)
trained = GPTNeoXForCausalLM(config)
Trainer(trained, arguments, train_dataset=rows).train()
names = load_file("run/checkpoint-2/model.safetensors")
print("saved as:", [name for name in names if "embed_out" in name or "lm_head" in name])

resumed = GPTNeoXForCausalLM(config)
initial = resumed.lm_head.weight.detach().clone()
Trainer(resumed, arguments, train_dataset=rows).train(resume_from_checkpoint="run/checkpoint-2")  # no steps are left
same = torch.equal(resumed.gpt_neox.embed_in.weight, trained.gpt_neox.embed_in.weight)
head = torch.equal(resumed.lm_head.weight, trained.lm_head.weight)
print(f"resumed: embedding {same}, output layer {head}, as initialised {torch.equal(resumed.lm_head.weight, initial)}")

loaded = GPTNeoXForCausalLM.from_pretrained("run/checkpoint-2")
print("from_pretrained: output layer", torch.equal(loaded.lm_head.weight, trained.lm_head.weight))
PYTHON
grep -qxF "saved as: ['embed_out.weight']" seen.txt
grep -qxF "resumed: embedding True, output layer False, as initialised True" seen.txt
grep -qxF "from_pretrained: output layer True" seen.txt
