#!/usr/bin/env bash
# transformers 5.23.0 (tokenizers 0.23.3): the class that tokenizer_config.json names replaces rules of tokenizer.json.
#
# A tokenizer.json cuts numbers into digits. With `"tokenizer_class": "GPT2TokenizerFast"` beside it, AutoTokenizer
# gives a tokenizer with the pre-tokenizer of GPT-2 in its place, without a word: numbers are whole. With
# `PreTrainedTokenizerFast` the file's own rules are used.
#
# Output seen:
#   tokenizer.json: ['1', '7', '3', '2']
#   GPT2TokenizerFast: ['1732']
#   PreTrainedTokenizerFast: ['1', '7', '3', '2']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'PYTHON' | tee seen.txt
import json
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

letters = pre_tokenizers.ByteLevel.alphabet()
vocabulary = {letter: token for token, letter in enumerate(["<|endoftext|>", *sorted(letters), "17", "173", "1732"])}
backend = Tokenizer(models.BPE(vocabulary, [("1", "7"), ("17", "3"), ("173", "2")]))
digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
backend.save("tokenizer.json")
print("tokenizer.json:", backend.encode("1732").tokens)
for name in ("GPT2TokenizerFast", "PreTrainedTokenizerFast"):
    about = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    json.dump(about, open("tokenizer_config.json", "w"))
    print(f"{name}:", AutoTokenizer.from_pretrained(".").tokenize("1732"))
PYTHON
grep -qxF "GPT2TokenizerFast: ['1732']" seen.txt
grep -qxF "PreTrainedTokenizerFast: ['1', '7', '3', '2']" seen.txt
