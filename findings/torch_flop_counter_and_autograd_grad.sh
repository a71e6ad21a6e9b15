#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts `backward()` through a module, but not `torch.autograd.grad` of its input.
#
# To know which module is at work in the backward pass, the counter puts hooks on the inputs of modules. The hooks ask whether a
# tensor will be reached, and PyTorch refuses that question for a leaf during `autograd.grad`. So a gradient with respect to the
# input of a model, which attribution methods take, cannot be counted; the same product without a module around it can.
#
# Output seen:
#   backward through a module: 192 operations
#   autograd.grad through a module: RuntimeError: A leaf node was passed to _will_engine_execute_node
#   autograd.grad without a module: 128 operations
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>errors.txt | tee seen.txt
import torch
from torch.utils.flop_counter import FlopCounterMode

layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4, requires_grad=True)
with FlopCounterMode(display=False) as counter:
    layer(x).sum().backward()
print(f"backward through a module: {counter.get_total_flops()} operations")
try:
    with FlopCounterMode(display=False):
        torch.autograd.grad(layer(x).sum(), x)
    print("autograd.grad through a module is counted")
except RuntimeError as error:
    print(f"autograd.grad through a module: RuntimeError: {str(error).split(' but ')[0]}")
with FlopCounterMode(display=False) as counter:
    torch.autograd.grad((x @ layer.weight).sum(), x)
print(f"autograd.grad without a module: {counter.get_total_flops()} operations")
PYTHON
diff seen.txt - <<'SEEN'
backward through a module: 192 operations
autograd.grad through a module: RuntimeError: A leaf node was passed to _will_engine_execute_node
autograd.grad without a module: 128 operations
SEEN
