#!/usr/bin/env bash
# peft 0.21.2 (torch 2.13.0, transformers 5.23.0): merging LoRA on one of two tied embeddings changes the other as well.
#
# Where input and output embeddings are tied and LoRA adapts one of them, training and the unmerged model leave the
# other as it was. `merge_and_unload` adds the change to the tensor that both share, so the merged model is another
# one. peft warns when such an adapter is loaded, but not when it is merged. With the output layer cloned first, the
# merged model is the trained one.
#
# Output seen:
#   embed_tokens: as tied differs, cloned first agrees
#   lm_head: as tied differs, cloned first agrees
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'PYTHON' | tee seen.txt
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

tokens = torch.arange(12)[None]
config = LlamaConfig(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=16, tie_word_embeddings=True,
)
for target in ("embed_tokens", "lm_head"):
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).eval()
    base.save_pretrained(f"{target}/base")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", target], init_lora_weights=False)
    adapted = get_peft_model(base, lora).eval()
    trained = adapted(tokens).logits
    adapted.save_pretrained(f"{target}/adapter")
    found = []
    for clone in (False, True):
        model = AutoModelForCausalLM.from_pretrained(f"{target}/base").eval()
        if clone:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        merged = PeftModel.from_pretrained(model, f"{target}/adapter").merge_and_unload()
        found.append("agrees" if torch.allclose(merged(tokens).logits, trained, atol=1e-4) else "differs")
    print(f"{target}: as tied {found[0]}, cloned first {found[1]}")
PYTHON
grep -qxF "embed_tokens: as tied differs, cloned first agrees" seen.txt
grep -qxF "lm_head: as tied differs, cloned first agrees" seen.txt
