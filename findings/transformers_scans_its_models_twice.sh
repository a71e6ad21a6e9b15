#!/usr/bin/env bash
# transformers 5.23.0: importing it looks through its 1,600 model files twice.
#
# `transformers/__init__.py` asks `create_import_structure_from_path` for what the folder `models` defines, by a `Path` of the
# folder. `transformers/models/__init__.py` asks again, by the text of its own file name. The function caches its answers by
# argument, so the second call misses and reads every file anew: about 0.25 s of CPU in each process that uses a model,
# a config or a tokenizer. Both answers are equal.
#
# Output seen:
#   after `import transformers`: 549 folders read
#   after `from transformers import AutoConfig`: 1,099 folders read
#   the same answer: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' | tee seen.txt
from pathlib import Path

import transformers
from transformers.utils.import_utils import create_import_structure_from_path as look

first = look.cache_info().misses
print(f"after `import transformers`: {first:,} folders read")
from transformers import AutoConfig

second = look.cache_info().misses
print(f"after `from transformers import AutoConfig`: {second:,} folders read")
models = Path(transformers.__file__).parent / "models"
print("the same answer:", look(models) == look(str(models / "__init__.py")))
assert first > 500 and second > 1.9 * first
PYTHON
grep -qxF "the same answer: True" seen.txt
