"""The kinds of results: what their tables hold, which files come with them, and which command makes them.

To add a kind, write a `ResultSchema` here and list it in `KINDS`. The store refuses tables with other columns, and
`make docs` takes the meanings over into docs/results.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import suggest

SUCCESSION_CLASSES = ("numbers", "number_words", "ordinals", "days", "months", "letters", "roman_numerals")
"""Classes of words with a successor; `utils/heads/succession.py` lists the words."""


@dataclass(frozen=True)
class ResultSchema:
    """One kind of result.

    Attributes:
        name: its folder, `results/<name>/...`.
        columns: the columns of its tables after `model, step, tokens`: name -> meaning.
        script: the root script that writes it.
        config: how the names of that script's configs start; empty if they start with the task's name.
        companions: further files next to a checkpoint's table: suffix -> meaning.
        summaries: tables about all checkpoints of a model: file name without its ending -> column (after `model`) ->
            meaning.
        texts: the columns that hold text; all others hold numbers, or true and false. None if nobody says.
        never_empty: whether a table has at least one row.
        version: of the definitions of its numbers. Raise it by one when a change to the code moves them, or adds to
            them: results of another version are then refused.
    """

    name: str
    columns: Mapping[str, str]
    script: str
    config: str = ""
    companions: Mapping[str, str] = field(default_factory=dict)
    summaries: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    texts: tuple[str, ...] | None = None
    never_empty: bool = False
    version: int = 1


GRAPHS = ResultSchema(
    "graphs",
    {
        "source": "node that the edge comes from (`input`, `a3.h2`, `m3`)",
        "target": "what it goes into (`a5.h0<q>`, `m5`, `logits`)",
        "score": "EAP-IG score, in the metric's units; a positive one means that the edge raises the metric",
        "score_se": "standard error of `score`, from folds of the prompts",
        "stability": "share of 1,000 bootstrap resamples of the folds whose circuit of the same size has the edge",
        "inclusion": "share of the faithfulness thresholds 0.60, 0.65, ..., 0.95 whose circuit has the edge",
    },
    "get_circuits_over_time.py",
    companions={
        ".pt": "`scores`, their standard errors `score_se` and `in_circuit` for every edge, the names of the nodes, "
        "and whether blocks are `parallel`; for the edges that a circuit may hold (`fold_edges`: all edges of a graph "
        "of up to 50,000) the mean score of each fold of prompts, `fold_scores` times `fold_scale`, and `fold_sizes`, "
        "the prompts in each",
        ".json": "the graph in the JSON format of EAP-IG, with `export_json: true`",
    },
    texts=("source", "target"),
)
FAITHFULNESS = ResultSchema(
    "faithfulness",
    {
        "size": "edges asked for",
        "n_edges": "edges left after pruning",
        "n_nodes": "nodes that have an edge, `input` and `logits` included",
        "metric": "mean metric over prompts",
        "faithfulness": "(M(C) - M(corrupted)) / (M(clean) - M(corrupted))",
        "faithfulness_raw": "M(C) / M(clean)",
        "selected": "whether this circuit was chosen",
        "metric_se": "standard error of `metric`",
        "faithfulness_low": "lower end of the 95% interval of `faithfulness`",
        "faithfulness_high": "upper end of that interval",
    },
    "get_circuits_over_time.py",
    texts=(),
)
BASELINES = ResultSchema(
    "baselines",
    {
        "full": "the whole model's metric on clean prompts",
        "corrupted": "its metric on corrupted prompts",
        "n_prompts": "how many prompts circuits are evaluated on",
        "full_se": "standard error of `full`",
        "corrupted_se": "standard error of `corrupted`",
        "status": "`found`, `task not learned` or `threshold not reached`",
        "size": "edges asked for of the chosen circuit; empty if there is none",
        "size_low": "lower end of the 95% interval of `size`",
        "size_high": "upper end of that interval; empty if too many resamples find no size",
        "cpr": "area under the faithfulness curve, as MIB defines it; only with `search.mib: true`",
        "cmd": "area between that curve and 1, as MIB defines it; only with `search.mib: true`",
    },
    "get_circuits_over_time.py",
    texts=("status",),
    never_empty=True,
)
CONTROLS = ResultSchema(
    "controls",
    {
        "control": "`circuit`, a `random` one of its size, or the whole model `without_circuit` or `without_random`",
        "number": "number of the random circuit; empty for the circuit itself",
        "n_edges": "edges of the circuit that is evaluated or removed",
        "metric": "mean metric over prompts",
        "metric_se": "standard error of `metric`",
        "faithfulness": "(M - M(corrupted)) / (M(clean) - M(corrupted))",
        "beaten": "whether the circuit is more faithful than this random one, or the model less without the circuit "
        "than without this random one",
    },
    "get_circuits_over_time.py",
    texts=("control",),
)
PROMPT_GROUPS = ResultSchema(
    "prompt_groups",
    {
        "group": "`all` prompts, or a kind of the task's prompts (IOI: `ABBA`, `BABA`)",
        "n_prompts": "how many prompts that are",
    }
    | {
        column: meaning
        for name, what in (("full", "the whole model's metric"), ("circuit", "the circuit's metric"))
        for column, meaning in (
            (name, f"mean of {what}; empty if there is no circuit" if name == "circuit" else f"mean of {what}"),
            (f"{name}_se", "standard error of that mean"),
            (f"{name}_q25", f"lower quartile over prompts of {what}"),
            (f"{name}_median", "median over prompts"),
            (f"{name}_q75", "upper quartile over prompts"),
        )
    }
    | {
        "corrupted": "mean metric on corrupted prompts",
        "faithfulness": "(M(C) - M(corrupted)) / (M(clean) - M(corrupted)) on these prompts",
        "faithfulness_low": "lower end of its 95% interval",
        "faithfulness_high": "upper end of that interval",
    },
    "get_circuits_over_time.py",
    texts=("group",),
)
HYPOTHESIS_TESTS = ResultSchema(
    "hypothesis_tests",
    {
        "test": "`equivalence`, `independence`, `minimality`, `sufficiency` or `necessity` "
        "(`edge_attribution_patching/circuits/hypothesis_tests.py` defines them); no rows without "
        "`hypothesis_tests: true`",
        "statistic": "in this order: share of prompts on which the circuit beats the model; HSIC; share of edges that "
        "matter more than 90% of edges added at random; share of random circuits that the circuit beats (twice)",
        "p_value": "of the null hypothesis; for minimality of the worst edge, corrected for their number",
        "passes": "whether the circuit has the property, at 5%",
        "n": "how many prompts, edges or random circuits were compared",
    },
    "get_circuits_over_time.py",
    texts=("test",),
)
TRANSFER = ResultSchema(
    "transfer",
    {
        "from_step": "step at which the circuit was found; `step` is that of the model it is put into",
        "from_task": "task that it was found for; the folder's task is that it is evaluated on",
        "circuit": "fingerprint of its edges",
        "n_edges": "how many those are",
        "metric": "mean metric over prompts",
        "metric_se": "standard error of `metric`",
        "faithfulness": "(M(C) - M(corrupted)) / (M(clean) - M(corrupted)) in this model",
        "faithfulness_low": "lower end of its 95% interval",
        "faithfulness_high": "upper end of that interval",
        "faithfulness_raw": "M(C) / M(clean)",
    },
    "get_circuits_over_time.py",
    texts=("from_task", "circuit"),
)
COMPONENTS = ResultSchema(
    "components",
    {
        "score": "`induction`, `previous_token`, `duplicate_token`, `copy` or `negative_copy`",
        "layer": "layer of the head",
        "head": "number of the head in its layer",
        "value": "attention probability, or percent for the copy scores",
        "se": "standard error of `value`, from the random blocks, or for the copy scores from the prompts",
    },
    "get_full_model_components_over_time.py",
    "components",
    version=2,
    texts=("score",),
    never_empty=True,
)
SUCCESSOR = ResultSchema(
    "successor",
    {
        "layer": "layer of the head",
        "head": "number of the head in its layer",
        "value": "share of all pairs of a word and its successor that the head gets right",
        "pairs": "how many pairs the model's tokenizer leaves",
        "class_mean": "mean over classes, each with the same weight",
    }
    | {
        column: meaning
        for name in SUCCESSION_CLASSES
        for column, meaning in (
            (name, f"share of the pairs of {name.replace('_', ' ')}; empty if there are none"),
            (f"{name}_pairs", "how many those are"),
        )
    },
    "get_new_successor_head_scores_over_time.py",
    "successor",
    texts=(),
    never_empty=True,
)
CSPA = ResultSchema(
    "cspa",
    {
        "layer": "layer of the head",
        "head": "number of the head in its layer",
        "score": "1 - KL(orig || CSPA) / KL(orig || mean-ablated); empty if there is a `reason`",
        "score_se": "standard error of `score`, from sequences",
        "kl_cspa": "KL(orig || CSPA), in nats",
        "kl_ablated": "KL(orig || mean-ablated), in nats",
        "loss": "cross-entropy with the next token, in nats",
        "loss_cspa": "the same under CSPA",
        "loss_ablated": "the same under mean ablation",
        "n_positions": "how many positions were measured",
        "reason": "why the score is empty",
    },
    "get_model_cspa.py",
    "cspa",
    companions={".json": "hashes of the text that was read"},
    version=2,
    texts=("reason",),
    never_empty=True,
)
IOI_CONSISTENCY = ResultSchema(
    "ioi_consistency",
    {
        "level": "`name_movers`, `s_inhibition` or `induction`",
        "definitions": "`study` or `frozen`: how effects are measured and roles given",
        "unit": "what an effect is a share of: `LD_clean - LD_corrupted` or `LD_clean`, mean logit differences",
        "percent": "100 * `identified_effect` / `circuit_effect`; empty if there is a `reason`",
        "percent_low": "lower end of its 95% interval, from resampled prompts",
        "percent_high": "upper end of that interval",
        "percent_in_circuit": "100 * `identified_in_circuit_effect` / `circuit_effect`",
        "percent_in_circuit_low": "lower end of its 95% interval",
        "percent_in_circuit_high": "upper end of that interval",
        "identified_effect": "sum of the absolute effects of the heads that hold the level's role",
        "identified_in_circuit_effect": "the same for those of them that are in the circuit",
        "circuit_effect": "the same for all heads of the circuit",
        "n_heads": "how many heads hold the role",
        "n_heads_in_circuit": "how many of them are in the circuit",
        "n_measured": "how many heads can hold a role",
        "n_receivers": "how many heads have their inputs patched; empty at the first level",
        "logit_diff": "mean logit difference on clean prompts",
        "logit_diff_se": "standard error of `logit_diff`",
        "corrupted_logit_diff": "mean logit difference on corrupted prompts, for the clean prompts' answers",
        "reason": "why the level is empty",
    },
    "get_ioi_consistency.py",
    "ioi_consistency",
    companions={".json": "where the circuit and the scores came from"},
    summaries={
        "role_handover": {
            "role": "the role that the head holds at one or more checkpoints",
            "layer": "layer of the head",
            "head": "number of the head in its layer",
            "first_step": "first checkpoint at which it holds the role",
            "last_step": "last such checkpoint",
            "first_tokens": "tokens seen by the first of them",
            "last_tokens": "tokens seen by the last of them",
            "n_held": "at how many checkpoints it holds the role",
            "n_between": "how many were measured from the first to the last; if more, it lost the role in between",
            "peak_step": "checkpoint at which its effect is largest while it holds the role",
            "peak_effect": "its effect there, as in `ioi_consistency_heads`",
        }
    },
    texts=("level", "definitions", "unit", "reason"),
    never_empty=True,
)
IOI_CONSISTENCY_HEADS = ResultSchema(
    "ioi_consistency_heads",
    {
        "level": "`name_movers`, `s_inhibition` or `induction`",
        "definitions": "`study` or `frozen`",
        "layer": "layer of the head",
        "head": "number of the head in its layer",
        "role": "the role that its effect and scores make it a candidate for, if any",
        "effect": "change of the mean logit difference, as a share of the unit",
        "effect_se": "standard error of `effect`, from resampled prompts",
        "unit": "what an effect is a share of, as in `ioi_consistency`",
        "copy_score": "copy score, in percent",
        "negative_copy_score": "negative copy score, in percent",
        "cspa": "copy-suppression score",
        "induction": "induction score, an attention probability",
        "duplicate_token": "duplicate-token score, an attention probability",
        "attention_io": "attention to IO from the last token (at level `induction`: from S2)",
        "attention_s1": "attention to S1, from the same token",
        "attention_s2": "attention to S2, from the same token",
        "in_circuit": "whether the head is in the circuit",
        "passes": "whether the head holds the role",
    },
    "get_ioi_consistency.py",
    "ioi_consistency",
    texts=("level", "definitions", "role", "unit"),
)
IOI_CONSISTENCY_SIGNALS = ResultSchema(
    "ioi_consistency_signals",
    {
        "definitions": "`study` or `frozen`",
        "layer": "layer of the candidate for S-inhibition",
        "head": "number of the candidate",
        "variant": "variant of the prompt that the candidate's output at the last token is taken from: the same or "
        "another S, the names in the same or the opposite order; `same_token_same_order` is the prompt itself",
        "logit_diff": "mean logit difference",
        "attention_io": "how much the name movers that read the candidate attend to IO",
        "attention_s1": "how much they attend to S1",
        "attention_s2": "how much they attend to S2",
        "n_name_movers": "how many name movers read the candidate",
        "passes": "whether the candidate is an S-inhibition head",
    },
    "get_ioi_consistency.py",
    "ioi_consistency",
    texts=("definitions", "variant"),
)
IOI_BACKUP = ResultSchema(
    "ioi_backup",
    {
        "definitions": "`study` or `frozen`: how the name movers were found",
        "part": "`all` of the model, the ablated `name_movers`, all other `heads`, all `mlps`, the `final_norm` (its "
        "change of scale), or one `head`",
        "layer": "layer of the head",
        "head": "number of the head in its layer",
        "role": "the role that the head holds at level `name_movers`, if any",
        "direct_effect": "what the part adds to the mean logit difference, at the norm scale of the clean run; for "
        "`all` the logit difference itself",
        "direct_effect_ablated": "the same with the name movers ablated",
        "change": "`direct_effect_ablated` - `direct_effect`",
        "change_se": "standard error of `change`, from resampled prompts",
        "came_back": "`change` in percent of what the name movers add less than before; for `all` the sum over "
        "everything that is not ablated",
        "came_back_low": "lower end of its 95% interval",
        "came_back_high": "upper end of that interval",
        "n_ablated": "how many name movers were ablated",
        "ablation": "what they wrote instead: their `mean`, or what they write in the `corrupted` prompt",
        "reason": "why the table is empty, or nothing can come back",
    },
    "get_ioi_consistency.py",
    "ioi_consistency",
    texts=("definitions", "part", "role", "ablation", "reason"),
)
TASK_PERFORMANCE = ResultSchema(
    "task_performance",
    {
        "run": "which prompts: `clean` or `corrupted`",
        "metric": "name of the metric (`utils/tasks/metrics.py` defines them)",
        "value": "mean over prompts",
        "se": "standard error of `value`",
        "n": "how many prompts",
    },
    "get_model_task_performance.py",
    "performance",
    texts=("run", "metric"),
    never_empty=True,
)
CHECKS = ResultSchema(
    "checks",
    {},
    "check_checkpoints.py",
    "check",
    summaries={
        "checkpoints": {
            "step": "training step of a published checkpoint",
            "tokens": "tokens seen in training",
            "revision": "branch, tag or folder",
            "file": "file with weights",
            "bytes": "its size",
            "sha256": "SHA-256 of its content",
            "problem": "`equal weights`, `equal shard`, `equal as expected`, `missing: ...` or `not asked: ...`; empty "
            "if nothing is wrong",
            "same_as": "the other steps that hold the same file, or `main`",
            "known": "what is known to be wrong with the step, and who says so",
        },
        "distances": {
            "step": "a checkpoint; only with `--deep`",
            "before": "the one before it in `checkpoints`",
            "distance": "relative L2 distance between the two, the mean over a few matrices",
            "usual": "median of the neighbouring pairs",
            "stands_out": "whether `distance` is more than 5 times that",
        },
    },
)

KINDS: dict[str, ResultSchema] = {
    kind.name: kind
    for kind in (
        GRAPHS,
        FAITHFULNESS,
        BASELINES,
        CONTROLS,
        PROMPT_GROUPS,
        HYPOTHESIS_TESTS,
        TRANSFER,
        COMPONENTS,
        SUCCESSOR,
        CSPA,
        IOI_CONSISTENCY,
        IOI_CONSISTENCY_HEADS,
        IOI_CONSISTENCY_SIGNALS,
        IOI_BACKUP,
        TASK_PERFORMANCE,
    )
}


WITHOUT_STEPS = (CHECKS,)
"""Kinds of results about all checkpoints at once: they have summaries only, and the report has no use for them."""


def find_kind(kind: str | ResultSchema) -> ResultSchema:
    """A kind by its name.

    Raises:
        ValueError: if there is no such kind.
    """
    if isinstance(kind, ResultSchema):
        return kind
    if kind not in KINDS:
        raise ValueError(f"'{kind}' is not a kind of result{suggest(kind, KINDS)}")
    return KINDS[kind]


def how_to_make(kind: str | ResultSchema, model: str | None = None, task: str | None = None) -> str:
    """The command that makes a kind's results, with a config that exists (or the name that one would have)."""
    found = find_kind(kind)
    if found.name not in KINDS:
        return "cot.over_time(...)"
    start = found.config or task or "ioi"
    own = Path("configs", f"{start}_{(model or '160m').removeprefix('pythia-')}.yml")
    of_all_tasks = Path("configs", f"{model}.yml")
    if not found.config and not own.exists() and of_all_tasks.exists():
        return f"python {found.script} -c {of_all_tasks.as_posix()}"
    if own.exists() or model is None:
        return f"python {found.script} -c {own.as_posix()}"
    others = sorted(Path("configs").glob(f"{start}_*.yml"))
    if not others:
        return f"python {found.script} -c {own.as_posix()}"
    return f"python {found.script} -c {others[0].as_posix()} model={model}"
