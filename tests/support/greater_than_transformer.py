"""A transformer that does greater-than the way Hanna et al. 2023 describe, its weights written by hand.

A GPT-2 of three layers of two heads; its residual stream is cut into named parts. A year's code has a 1 at every number
up to it, and in a second half at every number beyond it.

    embedding  writes half the code of a number to YEAR
    m0         writes the other half
    1.0        year head: looks from the end at YY, writes its code to BROUGHT
    1.1        looks there too, and writes to BESIDE, which nobody reads, which token YY is
    m1         raises the numbers from 50 on, whatever YY is
    m2         reads BROUGHT, raises the numbers beyond it and lowers the others

All other heads attend uniformly and write nothing. Every part is read as the difference of two places, and every node
writes equally much in all prompts, so that no LayerNorm carries anything around the paths.
"""

from __future__ import annotations

from functools import cache

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuits_over_time.utils.tasks.greater_than import TEMPLATE
from tests.support.ioi_transformer import Head
from tests.support.task_tokenizers import word_level

N = 100
YY = 7
"""Where the start year's digits stand."""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Knows the words of the template, some nouns and all two-digit numbers."""
    return word_level([TEMPLATE, "war plague reign siege test", *(f"{number:02d}" for number in range(N))])


def greater_than_transformer() -> GPT2LMHeadModel:
    """The model; see the module's docstring."""
    known = tokenizer().get_vocab()
    vocab, numbers = len(known), torch.tensor([known[f"{number:02d}"] for number in range(N)])
    sizes = {"token": vocab, "position": 20, "year": 2 * N, "brought": 2 * N, "beside": vocab, "out": 2 * N, "zero": 2}
    ends = dict(zip(sizes, torch.tensor(list(sizes.values())).cumsum(0).tolist(), strict=True))
    part = {name: slice(ends[name] - size, ends[name]) for name, size in sizes.items()}
    zero = part["zero"].start  # what others are read against
    d_model = ends["zero"] + ends["zero"] % 2
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab, n_positions=20, n_embd=d_model, n_layer=3, n_head=2, n_inner=2 * N,
            activation_function="relu", attn_implementation="eager", tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip
    model = model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)

    up_to = torch.ones(N, N).tril()  # [year, number]: 1 at every number up to the year
    code = torch.cat((up_to, 1 - up_to), dim=1)
    model.transformer.wte.weight[:, part["token"]] = torch.eye(vocab)
    model.transformer.wpe.weight[:, part["position"]] = torch.eye(20)
    model.transformer.wte.weight[numbers, part["year"]] = code / 2
    mlps = [block.mlp for block in model.transformer.h]
    mlps[0].c_fc.weight[numbers, :N] = torch.eye(N)
    mlps[0].c_fc.weight[zero, :N] = -1
    at_yy = model.transformer.wte.weight[numbers[40]] + model.transformer.wpe.weight[YY]
    size = float(1 / (at_yy.var(unbiased=False) + model.transformer.h[0].ln_2.eps).sqrt())  # of a 1 after the norm
    mlps[0].c_proj.weight[:N, part["year"]] = code / (2 * size)

    for number, source, target in ((0, "year", "brought"), (1, "token", "beside")):
        head = Head(model, 1, number)
        head.q_bias[0] = 60.0 * head.d_head**0.5
        head.k[part["position"].start + YY, 0], head.k[zero, 0] = 1.0, -1.0
        width = part[source].stop - part[source].start
        head.v[part[source], :width] = torch.eye(width)
        head.v[zero, :width] = -1
        head.o[:width, part[target]] = torch.eye(width)
    mlps[1].c_fc.bias[0] = 1.0
    late = (torch.arange(N) >= N // 2).float() * 2 - 1
    mlps[1].c_proj.weight[0, part["out"]] = torch.cat((late, -late))
    first, second = (slice(start, start + N) for start in (part["brought"].start, part["brought"].start + N))
    for rows, sign in ((slice(0, N), -1.0), (slice(N, 2 * N), 1.0)):  # neurons of the numbers up to YY, and beyond it
        # Half a code counts as beyond the year.
        mlps[2].c_fc.weight[first, rows] = -sign * torch.eye(N)
        mlps[2].c_fc.weight[second, rows] = 3 * sign * torch.eye(N)
        mlps[2].c_fc.weight[zero, rows] = -2 * sign
        mlps[2].c_proj.weight[rows, part["out"]] = 20 * sign * torch.cat((torch.eye(N), -torch.eye(N)), dim=1)
    model.lm_head.weight[numbers, part["out"].start : part["out"].start + N] = torch.eye(N)
    return model
