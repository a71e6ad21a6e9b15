"""The greater-than algorithm in one checkpoint, from the logits backwards (Hanna et al. 2023, arXiv 2305.00586).

    mlps      heads and MLPs -> logits                     year MLPs raise the years above YY
    heads     heads -> year MLPs -> logits                 year heads look from the end at YY, and bring the year
    inputs    everything, at YY -> values of year heads    the embedding of YY and MLP 0
                -> year MLPs -> logits

YY is where the start year differs from that of the corrupted prompt. An effect is what the probability difference PD
loses if the path alone carries the corrupted prompt, (PD_patched - PD_clean) / (PD_clean - PD_corrupted): 0 nothing, -1
all of it. A node holds its level's role if its effect and the scores below are beyond their limits by more than they
err (`roles.py`). Each level reports

    percent = 100 * sum of |effect| over the nodes that hold the role / sum of |effect| over the circuit's nodes

beside what random nodes of the same layers get in their place. `docs/heads.md#the-greater-than-algorithm` defines the
scores, `above_diagonal` of MLPs, `attention_yy` and `year_order` of heads, and their chance levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.forward import Unembedding
from circuits_over_time.edge_attribution_patching.model.norms import normalise
from circuits_over_time.edge_attribution_patching.model.transfer import to_device
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.patching.paths import INPUT, Receivers, Sender
from circuits_over_time.edge_attribution_patching.patching.runs import at_answers, metric_of_finals
from circuits_over_time.edge_attribution_patching.statistics import percentile_interval, standard_error

from ..circuits.find import CircuitPrompts
from ..models.checkpoint import LoadedCheckpoint
from ..results.kinds import KINDS, WITH_CIRCUIT
from ..results.store import Result
from ..tasks import TASKS, Prompts, Task
from ..tasks.greater_than import form_of, number_tokens
from .attention import name_attention
from .effects import PairedRuns
from .inputs import FoundEdges, Lookup, prompts_of_circuit
from .keys import GreaterThanConsistencyConfig
from .roles import Evidence, give_roles, holders
from .shares import PValues, Scale, p_mean_above, random_percentages
from .tables import measured_level, typed_table

LEVELS, NODES = KINDS["greater_than_consistency"], KINDS["greater_than_consistency_nodes"]

ROUNDING = 1e-5
"""Of projections: sums whose terms cancel to less than this share are 0."""
Scores = dict[str, Float[Tensor, " sender"]]
"""Columns of the table of nodes."""


@dataclass(frozen=True)
class GreaterThanInputs:
    """What is prepared once for a model."""

    prompts: Prompts
    starts: Int[Tensor, " prompt"]  # the number YY of each prompt
    numbers: dict[int, int]  # answer -> its token
    circuit: CircuitPrompts | None  # what the circuit is found on; None if it must not be computed
    already_warned: set[str] = field(default_factory=set)  # what the log has already said


def prepare(
    config: GreaterThanConsistencyConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape
) -> GreaterThanInputs:
    """Build the prompts; a UserError if this tokenizer cannot make them, or they do not fit the model."""
    task = TASKS[config.task]
    prompts = task.build(tokenizer, config.n_prompts, config.seed, config)
    prompts.require_fit(task.name, shape)
    digits, _ = form_of(tokenizer)
    starts, numbers = torch.tensor(prompts.meta["year"].to_numpy() % 10**digits), number_tokens(tokenizer, digits)
    return GreaterThanInputs(prompts, starts, numbers, prompts_of_circuit(config, tokenizer, shape))


def measure(
    checkpoint: LoadedCheckpoint, config: GreaterThanConsistencyConfig, inputs: GreaterThanInputs, task: Task | None
) -> dict[str, Result]:
    """The levels of one checkpoint, and their nodes."""
    lookup = Lookup(checkpoint, config, inputs.already_warned)
    circuit, origin = lookup.circuit(config, lookup.stored_circuit(config), inputs.circuit)
    levels = Levels(checkpoint.weights, inputs, circuit, config)
    levels.run()
    return {
        LEVELS.name: Result(levels.table(), json={"inputs": {"circuit": origin}}),
        NODES.name: Result(pd.DataFrame(levels.nodes, columns=list(NODES.columns))),
    }


class Levels:
    """One checkpoint's levels, in order: each needs the nodes that the one before it has identified."""

    def __init__(
        self,
        weights: ModelWeights,
        inputs: GreaterThanInputs,
        circuit: FoundEdges,
        config: GreaterThanConsistencyConfig,
    ) -> None:
        self.weights, self.inputs, self.circuit, self.config = weights, inputs, circuit, config
        self.limits, self.prompts, self.graph = config.thresholds, inputs.prompts, circuit.graph
        metric = self.prompts.metric("prob_diff", weights)

        def of_finals(finals: Tensor, index: Tensor) -> Tensor:
            """One pass at a time: the logits of many passes are large."""
            return torch.cat([metric_of_finals(weights, final[None], index, metric) for final in finals])

        budget, others = config.budget_gb(*weights.devices), self.prompts.corrupted
        self.runs = PairedRuns(weights, self.prompts, others, config.batch_size, budget, of_finals)
        self.clean, self.corrupted = self.runs.both()
        self.scale = Scale(self.clean, self.clean - self.corrupted, config.seed)
        self.levels: list[dict[str, Any]] = []  # rows of the two tables
        self.nodes: list[dict[str, Any]] = []

    def table(self) -> pd.DataFrame:
        """The rows of the levels."""
        return typed_table(self.levels, LEVELS)

    def run(self) -> None:
        """Measure all levels; one without receivers gets the reason in place of its numbers."""
        clean, corrupted = float(self.clean.double().mean()), float(self.corrupted.double().mean())
        reason = ""
        if self.circuit.status not in WITH_CIRCUIT:
            reason = f"no circuit: {self.circuit.status}"
        elif not clean > corrupted:
            beside = f"and {corrupted:.3g} in corrupted prompts"
            reason = f"the probability difference is {clean:.3g}, {beside}: nothing can be lost"
        if reason:
            for level in ("mlps", "heads", "inputs"):
                self._row(level, reason=reason)
            return
        # By their nodes' numbers: the MLP of a layer comes after its heads.
        columns = [*range(self.graph.n_heads), None]
        senders: list[Sender] = [(layer, head) for layer in range(self.graph.n_layers) for head in columns]
        heads = [sender for sender in senders if sender[1] is not None]
        limit, beyond = f"an effect below {self.limits.effect:g}", "beyond their errors"

        scores, p_values = self._raised()
        year_mlps = self._level("mlps", "year_mlp", senders, (), scores, p_values)
        if not year_mlps:
            self._row("heads", reason=f"no year MLPs: none has {limit} and raises the years above YY, {beyond}")
            self._row("inputs", reason="no year heads: there are no year MLPs to read them")
            return
        scores, p_values = self._brought(heads)
        into = Receivers(year_mlps)
        year_heads = self._level("heads", "year_head", heads, (into,), scores, p_values)
        if not year_heads:
            n, why = len(self.inputs.starts.unique()), f"none has {limit}, looks at YY and brings the year, {beyond}"
            if surest(n) > self.config.false_discovery_rate / len(heads):
                why = f"YY has {n} values here, too few to tell an order from chance among {len(heads)} heads"
            self._row("inputs", reason=f"no year heads: {why}")
            return
        # What stands below the highest of them.
        senders = [node for node in (INPUT, *senders) if node[0] < year_heads[-1][0]]
        p_values = np.array([0.0 if node in (INPUT, (0, None)) else np.nan for node in senders])
        self._level("inputs", "year_input", senders, (Receivers(year_heads, "v"), into), {}, p_values)

    def _index(self, node: Sender) -> int:
        """The forward index of a node."""
        layer, head = node
        return self.graph.mlp(layer) if head is None else self.graph.head(layer, head)

    def _level(
        self,
        level: str,
        role: str,
        senders: Sequence[Sender],
        stages: Sequence[Receivers],
        scores: Scores,
        p_scores: PValues,
    ) -> tuple[Sender, ...]:
        """Measure a level, whose paths to the logits lead through some stages, and return the nodes that hold its role.

        `p_scores` test that a sender's scores are beyond their limits; nan for one that cannot hold the role.
        """
        at_yy = any(stage.letter == "v" for stage in stages)
        effects = self.scale.effects(self.runs.along_paths(senders, stages, only_at_the_difference=at_yy))
        limit = self.limits.effect
        candidate = p_scores < 0.5
        p_values = np.maximum(p_scores, effects.p_below(limit))
        evidence = Evidence(role, candidate, candidate & (effects.values.numpy() < limit), p_values)
        roles = give_roles(senders, [evidence], self.config.false_discovery_rate)
        found, index = holders(roles), [self._index(node) for node in senders]
        in_circuit = self.circuit.nodes[index]
        rows, identified, of_level = measured_level("node", senders, roles, effects, self.scale, in_circuit)
        for at, (row, node) in enumerate(zip(rows, senders, strict=True)):
            row |= {"level": level, "node": self.graph.forward_nodes[index[at]], "head": node[1]}
            row |= {"layer": None if node == INPUT else node[0]}
            self.nodes.append(row | {name: float(values[at]) for name, values in scores.items()})
        of_level |= {"n_measured": len(senders), "n_receivers": len(stages[0].heads) if stages else None}
        if "reason" not in of_level:
            layers = torch.tensor([max(layer, 0) for layer, _ in senders])  # the embedding counts as layer 0's
            n, seed = self.config.n_random, self.config.seed
            drawn = random_percentages(effects, identified, in_circuit, layers, n, seed)
            low, high = percentile_interval(drawn)
            of_level |= {"chance": float(drawn.mean()), "chance_low": float(low), "chance_high": float(high)}
        self._row(level, **of_level)
        return found

    def _row(self, level: str, **values: Any) -> None:
        """Add a level with what there is of it: its numbers, or the reason why it has no percentage."""
        about = {"prob_diff": float(self.clean.double().mean()), "prob_diff_se": standard_error(self.clean)}
        about |= {"corrupted_prob_diff": float(self.corrupted.double().mean())}
        self.levels.append({"level": level, **about, **values})

    def _raised(self) -> tuple[Scores, PValues]:
        """`above_diagonal` of all heads and MLPs with its chance level, and tests of it; nan for heads."""
        numbers, tokens = torch.tensor(list(self.inputs.numbers.items())).T
        rows = Unembedding(self.weights).rows(to_device(tokens, self.weights.device))
        shape = self.graph.n_layers, len(self.prompts), len(numbers)
        raised = torch.zeros(shape, dtype=rows.dtype, device=rows.device)  # filled there, and copied once
        for prepared in self.runs:
            base = at_answers(prepared).base
            _, inverse_scale = normalise(self.weights.final_norm, base.final.to(rows.dtype))
            for layer, run in enumerate(base.layers):
                logits = (run.mlp_out.to(rows) * inverse_scale) @ rows.T  # [prompt, number]
                raised[layer, prepared.batch.index] = (logits - logits.mean(1, keepdim=True)).clamp(min=0)
        raised = raised.cpu().double()
        raised /= raised.sum(dim=2, keepdim=True)
        above = (numbers > self.inputs.starts[:, None]).double()  # [prompt, number]
        right, expected = (raised * above).sum(-1), raised @ above.mean(0)  # [layer, prompt]
        columns = torch.full((3, self.graph.n_layers, self.graph.n_heads + 1), torch.nan, dtype=torch.float64)
        columns[:2, :, -1] = torch.stack((right, expected)).mean(-1)
        columns[2, :, -1] = torch.tensor(p_mean_above(right - expected))
        score, chance, p_values = columns.flatten(1)
        return {"above_diagonal": score, "above_diagonal_chance": chance}, p_values.numpy()

    def _brought(self, heads: Sequence[Sender]) -> tuple[Scores, PValues]:
        """`attention_yy` with its chance level and `year_order`, of all heads, and tests of both."""
        prompts, over = self.prompts, self.limits.attention_over_chance
        yy = (prompts.clean != prompts.corrupted).int().argmax(dim=1)
        yy = prompts.lengths - 7 if self.config.study_faults else yy
        places = prompts.positions["end"][:, None], yy[:, None]
        by_prompt, _ = name_attention(self.weights, prompts.clean, prompts.lengths, *places, self.config.batch_size)
        attention, even = by_prompt[0, 0].flatten(0, 1).double(), 1 / prompts.lengths.double()  # [head, prompt]
        orders = [of_head for outputs in self._values_at_yy() for of_head in year_order(outputs, self.inputs.starts)]
        order, p_order = (torch.tensor(column) for column in zip(*orders, strict=True))
        scores = {"attention_yy": attention.mean(1), "year_order": order}
        scores["attention_chance"] = even.mean().expand(len(heads))
        return scores, np.maximum(p_mean_above(attention - over * even), p_order.numpy())

    def _values_at_yy(self) -> list[Float[Tensor, "prompt head d_model"]]:
        """What every head of each layer writes if it attends to YY alone, in the clean run."""
        values: list[list[Tensor]] = [[] for _ in range(self.graph.n_layers)]
        order: list[np.ndarray] = []
        for prepared in self.runs:
            starts, lengths = prepared.layout.on_cpu
            counts = lengths - starts
            first = to_device(torch.from_numpy(counts.cumsum() - counts), self.weights.device)  # where YY is packed
            order.append(prepared.batch.rows)
            for of_layer, run in zip(values, prepared.base.layers, strict=True):
                of_layer.append(run.v[first.to(run.v.device)])
        back = torch.tensor(np.concatenate(order)).argsort()
        outputs = []
        for of_layer, block in zip(values, self.weights.layers, strict=True):
            v = torch.cat(of_layer).repeat_interleave(block.group, dim=1)
            outputs.append(torch.einsum("phd,hdm->phm", v, block.W_O_scaled).cpu().double()[back])
        return outputs


def year_order(
    outputs: Float[Tensor, "prompt head d_model"], starts: Int[Tensor, " prompt"]
) -> list[tuple[float, float]]:
    """`year_order` of every head, in [-1, 1], and how likely one so high is, at most, without order (Student's t).

    Each output is projected on the direction along which those of all other YYs rise with the year (their covariance).
    So a YY cannot help itself, and outputs without order, however distinct, have 0.

    Of outputs without order the correlation varies twice as much as that of independent pairs: every two outputs a and
    b enter once as a's projection on b, and once as b's on a. So it is tested with half of the degrees of freedom, and
    its p-value is at least that of a perfect order (`surest`). Outputs of the same YY are averaged.
    """
    years, place = starts.unique(return_inverse=True)
    n = len(years)
    if n < 3:
        return [(float("nan"), float("nan"))] * outputs.shape[1]
    sums = torch.zeros(n, *outputs.shape[1:], dtype=outputs.dtype).index_add_(0, place, outputs)
    means = (sums / place.bincount()[:, None, None]).transpose(0, 1)  # [head, year, d_model]
    # Row i is about all years but i: their mean year is taken off, and the mean of their outputs.
    others = (1 - torch.eye(n, dtype=means.dtype)) / (n - 1)
    years = years.to(means.dtype)
    rises = (years - (others @ years)[:, None]) * others  # [left out, other]
    gram = means @ means.mT
    terms = (gram - others @ gram) * rises
    projected, smallest = terms.sum(dim=-1), ROUNDING * terms.abs().sum(dim=-1).amax(dim=-1)  # [head, year], [head]
    found = []
    for of_head, limit in zip(projected.numpy(), smallest.tolist(), strict=True):
        if np.ptp(of_head) <= limit:  # It writes the same for all, or nothing, or what has no order at all.
            found.append((0.0, 1.0))
            continue
        order, freedom = float(stats.spearmanr(years.numpy(), of_head).statistic), (n - 2) / 2
        with np.errstate(divide="ignore"):
            p_value = float(stats.t.sf(order * np.sqrt(np.divide(freedom, 1 - order**2)), freedom))
        found.append((order, max(p_value, surest(n))))
    return found


def surest(n: int) -> float:
    """The p-value of n years in perfect order: one or two orders among all."""
    return 2 / factorial(n)
