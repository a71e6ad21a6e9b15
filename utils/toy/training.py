"""Training of the toy family: the model, the optimisers and one training step, on the CPU and reproducible bit by bit.

The order in which a matrix product is summed depends on the number of threads. So training sets that number itself
(one, unless the config says otherwise) and gives the same weights whatever the machine's cores or the caller's
settings. Another kind of processor may round differently.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ..base.errors import UserError
from .batches import Batch
from .keys import ModelConfig, OptimizerConfig
from .muon import Muon


def new_model(config: ModelConfig, vocab_size: int) -> GPTNeoXForCausalLM:
    """A model with random weights, drawn from torch's random state."""
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.d_mlp,
            max_position_embeddings=config.n_positions,
            initializer_range=config.init_std,
            rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base, "partial_rotary_factor": 0.25},
            use_parallel_residual=True,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def rate_share(config: OptimizerConfig, step: int) -> float:
    """Share of the highest learning rate after `step` finished steps: a linear warm-up, then a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.final_share + (1 - config.final_share) * (1 + math.cos(math.pi * progress)) / 2


_STATEFUL = ("model", "muon", "adam")


class Trainer:
    def __init__(self, config: OptimizerConfig, model: GPTNeoXForCausalLM) -> None:
        self.config, self.model = config, model
        blocks = _muon_groups(model)
        # Everything that Muon leaves is AdamW's: vectors and scalars do not decay.
        taken = {id(matrix) for group in blocks for matrix in group["params"]}
        others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
        groups = [
            {"params": [parameter for parameter in others if parameter.ndim == 2], "weight_decay": config.weight_decay},
            {"params": [parameter for parameter in others if parameter.ndim != 2], "weight_decay": 0.0},
        ]
        self.muon = Muon(blocks, config.muon_rate, config.momentum, config.weight_decay)
        self.adam = torch.optim.AdamW(groups, lr=config.adam_rate, betas=config.betas, fused=True)

    def step(self, step: int, batch: Batch) -> float:
        """Train on the batch that follows `step` finished steps. Returns the mean cross-entropy of the learned tokens,
        in nats, before the update; a UserError if it is not finite.
        """
        share = rate_share(self.config, step)
        for optimizer, highest in ((self.muon, self.config.muon_rate), (self.adam, self.config.adam_rate)):
            for group in optimizer.param_groups:
                group["lr"] = share * highest
        loss = mean_loss(self.model, batch)
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.muon.step()
        self.adam.step()
        if not math.isfinite(value := loss.item()):
            raise UserError(
                f"optimizer: the training diverged (loss {value} after {step} steps); lower muon_rate or adam_rate"
            )
        return value

    def state(self) -> dict[str, Any]:
        """Weights and optimiser states, as tensors, numbers and strings only."""
        return {name: getattr(self, name).state_dict() for name in _STATEFUL}

    def restore(self, state: dict[str, Any]) -> None:
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])


def _muon_groups(model: GPTNeoXForCausalLM) -> list[dict[str, Any]]:
    """The matrices in the blocks, grouped by kind. The fused projection of attention is three of them."""
    # Any: modules of a ModuleList have no type of their own.
    layers: Any = model.gpt_neox.layers
    heads = model.config.num_attention_heads
    return [
        {"params": [layer.attention.query_key_value.weight for layer in layers], "heads": heads, "parts": 3},
        {"params": [layer.attention.dense.weight for layer in layers], "heads": 1, "parts": 1},
        {"params": [layer.mlp.dense_h_to_4h.weight for layer in layers], "heads": 1, "parts": 1},
        {"params": [layer.mlp.dense_4h_to_h.weight for layer in layers], "heads": 1, "parts": 1},
    ]


def mean_loss(model: GPTNeoXForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy, in nats, of the batch's learned tokens."""
    # An additive mask, because every layer would turn a boolean one into floats anew.
    mask = torch.zeros_like(batch.visible(), dtype=torch.float32).masked_fill_(~batch.visible(), -torch.inf)
    hidden = model.gpt_neox(
        batch.tokens, attention_mask=mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    # Only the positions before learned tokens go through the output layer.
    logits = model.lm_head(hidden[:, :-1][batch.learned[:, 1:]])
    return functional.cross_entropy(logits, batch.tokens[:, 1:][batch.learned[:, 1:]])
