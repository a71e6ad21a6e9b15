"""The keys of circuits: what finding one depends on, and what a run over checkpoints adds. It imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from circuits_over_time.edge_attribution_patching.choices import (
    POSITIVE_SHARE,
    TOLERANCE,
    USUAL_METHOD,
    USUAL_STEPS,
    VARIANTS,
    Ablation,
    Accumulate,
    Criterion,
    ExportFormat,
    Grid,
    Level,
    Method,
    Order,
    Quadrature,
    Selection,
    lacking_in_files,
)
from circuits_over_time.edge_attribution_patching.circuits.circuit_size import SizeRule
from circuits_over_time.edge_attribution_patching.graph import head_named

from ..base.errors import UserError, shortened
from ..config.components import require_heads
from ..config.keys import (
    MOST_PROMPTS,
    MemoryKeys,
    PromptOptions,
    RedrawKeys,
    Section,
    Steps,
    TaskConfig,
    amount,
    at_home,
    different,
    execution,
    key,
    variant_name,
)
from ..tasks import Pair, Task, tasks_of
from ..tasks.prompts import Work
from ..tasks.sampling import TooFewPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from circuits_over_time.edge_attribution_patching.model.architectures import Shape

    from ..models.tokenizers import PlainShape
    from ..results.store import Store

GRADIENT_METHODS = tuple(method for method in get_args(Method) if method not in ("information_flow_routes", "exact"))
USUAL_POINTS = 13
"""About how many `eap.ig_steps: auto` takes."""
_SHARED: dict[str, Any] = dict(TaskConfig.model_fields)


class EapConfig(Section):
    """How edges are scored."""

    method: Method = USUAL_METHOD
    """The [method](../docs/circuits.md#other-scores): `eap_ig`, `eap`, `clean_corrupted`, `eap_ig_activations`, `ceap`,
    `relp`, `information_flow_routes` or `exact`."""
    ig_steps: Literal["auto"] | Annotated[int, Field(gt=0, le=1000)] = key(
        "auto", reason="more steps change no score", only_with=("method", *USUAL_STEPS)
    )
    """Integration [steps](../docs/circuits.md#scores). `auto`: as many as it takes with `eap_ig`; 20 with `ceap`,
    `ablation: zero`, another `quadrature` than `left`, or `accumulate: model`; 5 a layer with `eap_ig_activations`."""
    tolerance: float = key(TOLERANCE, gt=0, le=100, reason="it is a share of the error")
    """Where steps are as many as it takes, the error of integration that may be left, in standard errors of scores."""
    quadrature: Quadrature = key("left", only_with=("method", "eap_ig", "exact"))
    """Where a number of [steps](../docs/circuits.md#scores) lie: `left`, `right`, `midpoint` or `gauss-legendre`; with
    `exact`, those that find the strongest edges."""
    accumulate: Accumulate = key("float32", only_with=("method", *GRADIENT_METHODS))
    """How scores of batches and steps are [added up](../docs/study.md#every-difference): in `float32`, or in the number
    format of the `model`, by `batch_size`."""
    n_folds: int = amount(10, 2, most=1000)
    """Into how many folds the prompts are dealt, to say [how sure](../docs/circuits.md#how-sure-it-is) scores are."""

    def steps(self, ablation: Ablation) -> int | Literal["auto"]:
        """`ig_steps`, with a number for `auto` where it is nothing else: the method's usual one."""
        refined = self.method == USUAL_METHOD and self.quadrature == "left" and self.accumulate == "float32"
        if self.ig_steps != "auto" or (refined and ablation != "zero"):
            return self.ig_steps
        return USUAL_STEPS.get(self.method, USUAL_STEPS[USUAL_METHOD])  # which methods without steps do not read


class ExactConfig(Section):
    """Exact scores (`eap.method: exact`)."""

    edges: Literal["all"] | Annotated[int, Field(gt=0)] = "all"
    """Which edges are patched: `all`, or so many, the strongest by `eap_ig`; the others have the score 0."""


class ReferenceConfig(Section):
    """Of what prompts ablated nodes write the mean (`ablation: mean` or `mean_positional`)."""

    corpus: Annotated[str, AfterValidator(at_home)] | None = key(None, min_length=1, file=True)
    """A [text](../docs/heads.md#copy-suppression), cut into sequences as long as the task's longest prompt: a file, a
    data set of the hub, a folder, `python_docs` or `toy`; `null`: the task's own clean prompts."""
    n_prompts: int | None = amount(None, most=MOST_PROMPTS)
    """How many of them; `null`: all of the task's, or 100 sequences of the text."""


class SearchConfig(Section):
    """How the circuit is searched."""

    threshold: float = key(0.8, gt=0, le=1, reason="the whole model has 1")
    """The faithfulness a circuit must reach."""
    criterion: Criterion = "normalised"
    """Which [faithfulness](../docs/circuits.md#the-circuit) must reach it: `normalised` or `raw`."""
    grid: Grid = "adaptive"
    """Which [sizes](../docs/circuits.md#the-circuit) to try: `adaptive`, or as in the `study`."""
    order: Order = "greedy"
    """In which order edges join: `greedy`, the strongest edge into the circuit so far, or `top_n`, wherever it is."""
    selection: Selection = "absolute"
    """What makes an edge [strong](../docs/circuits.md#the-circuit): `absolute`, its |score|, or `signed`."""
    positive_share: float = key(POSITIVE_SHARE, ge=0, le=1, reason="it is a share", only_with=("selection", "signed"))
    """With `selection: signed`, at least this share of the edges have a positive score."""
    sizes: list[int] | None = None
    """Evaluate exactly these numbers of edges (`[25, 50, 100]`) instead of searching; the smallest that reaches the
    threshold counts, without confirmation."""
    mib: bool = False
    """Also report CPR and CMD of the Mechanistic Interpretability Benchmark (MIB), which costs 20 more circuits."""
    min_gap: float = key(0.01, ge=0, le=1000, reason="no logit differs by more")
    """By how much the metric on clean prompts must beat that on corrupted ones for a task to count as learned."""

    def rule(self) -> SizeRule:
        """How the size is chosen."""
        return SizeRule(self.threshold, self.criterion, self.grid, self.sizes)

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Adds the grid, where its sizes are given."""
        yield from super().unread(prefix)
        if self.sizes is not None and self.grid != "adaptive":
            yield f"{prefix}grid", "with sizes: exactly those are evaluated"

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: list[int] | None) -> list[int] | None:
        if sizes is not None and (not sizes or min(sizes) < 1 or sorted(set(sizes)) != sizes):
            raise ValueError("sizes are numbers of edges, 1 or more, ascending, each once")
        return sizes


class PairKeys(Section):
    """Which prompts edges are scored on, and which ones circuits are evaluated on."""

    n_prompts: int | None = amount(None, most=MOST_PROMPTS)
    """How many prompt pairs to score edges on; with `evaluate_on: heldout`, faithfulness gets as many again. `null`:
    100, and of a prompts CSV all rows, half of them to score and half to evaluate."""
    evaluate_on: Literal["heldout", "same"] = "heldout"
    """Which prompts to measure faithfulness on: `heldout` ones, or the `same` that edges were scored on."""
    batch_weighting: Literal["equal", "by_batch"] = "equal"
    """How prompts count in scores and faithfulness: all `equal`, or each batch of `batch_size` alike, `by_batch`, so
    that prompts of a smaller last one count more."""
    accumulate_evaluation: Accumulate = "float32"
    """How edges outside a circuit are [put in](../docs/study.md#every-difference): all together in `float32`, or one by
    one in the number format of the `model`."""


class CircuitKeys(PairKeys):
    """What a circuit depends on, apart from the model and the task."""

    eap: EapConfig = EapConfig()
    exact: ExactConfig = ExactConfig()
    ablation: Ablation = "patching"
    """What nodes [write along edges outside](../docs/circuits.md#ablations) a circuit: `patching`, what they do in the
    corrupted prompt; `zero`, nothing; `mean` or `mean_positional`, their mean over reference prompts."""
    reference: ReferenceConfig = ReferenceConfig()
    level: Level = "edge"
    """What circuits [consist of](../docs/circuits.md#nodes-and-neurons): the `edge`, the `node` (heads and MLPs) or the
    `neuron` (hidden units of MLPs, and what heads hold before W_O)."""
    positions: bool = False
    """Tell edges apart by the [role of the token](../docs/circuits.md#by-the-role-of-a-token) where they are read."""
    search: SearchConfig = SearchConfig()

    def resolved(self) -> Self:
        """With the number that `ig_steps: auto` stands for, where it stands for one."""
        steps = self.eap.steps(self.ablation)
        return self.model_copy(update={"eap": self.eap.model_copy(update={"ig_steps": steps})})

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Adds what another method or ablation would read."""
        yield from super().unread(prefix)
        if self.eap.tolerance != TOLERANCE and (steps := self.eap.steps(self.ablation)) != "auto":
            means = f"=auto, which means {steps} with this method, quadrature, accumulate or ablation"
            yield f"{prefix}eap.tolerance", f"with eap.ig_steps{means if self.eap.ig_steps == 'auto' else f'={steps}'}"
        if self.reference != ReferenceConfig() and "mean" not in self.ablation:
            yield f"{prefix}reference", f"with ablation={self.ablation}; it needs mean or mean_positional"
        if self.exact.edges != "all" and self.eap.method != "exact":
            yield f"{prefix}exact.edges", f"with eap.method={self.eap.method}; it needs exact"


class TaskSettings(MemoryKeys, PromptOptions):
    """What measuring a task in one model depends on. The keys are those of the scripts."""

    n_prompts: int | None = _SHARED["n_prompts"]
    batch_size: int = _SHARED["batch_size"]
    seed: int = _SHARED["seed"]


class PairSettings(PairKeys, TaskSettings):
    """Everything that the prompts of a circuit depend on."""


class CircuitSettings(CircuitKeys, PairSettings):
    """Everything that finding a circuit in one model depends on, and checking it."""

    n_random: int = amount(20, 0, most=10_000)
    """How many [random circuits](../docs/circuits.md#against-chance) of its size to compare the circuit with."""
    hypothesis_tests: bool = False
    """Also [test](../docs/circuits.md#against-chance) the circuit as Shi et al. 2024."""


def _heads_named(names: list[str]) -> list[str]:
    for name in different(names):
        if head_named(name) is None:
            raise ValueError(f"'{name}' names no head; heads are named a3.h1 (layer 3, head 1)")
    return names


class CircuitsConfig(RedrawKeys, CircuitSettings, TaskConfig):
    """Keys of get_circuits_over_time.py."""

    transfer: Literal["all", "neighbours"] | Steps | None = execution(None)
    """Also put circuits of these steps, of the `neighbours` or of `all` steps into
    [other checkpoints' models](../docs/circuits.md#in-other-checkpoints-on-other-tasks)."""
    matched_transfer: bool = execution(False)
    """Also put the circuits of other models into this one, [under the names of matched
    heads](../docs/comparisons.md#transfer-by-matched-heads); run `compare_circuits.py match_heads=true` first."""
    circuit: Annotated[str, AfterValidator(at_home)] | None = key(None, min_length=1, file=True)
    """Evaluate [the circuit of a file](../docs/circuits.md#the-circuit-of-a-file) at every checkpoint, instead of
    finding one."""
    attention: Literal["circuit"] | Annotated[list[str], AfterValidator(_heads_named)] | None = "circuit"
    """Whose [attention](../docs/circuits.md#what-a-head-looks-at), and which tokens they raise and lower, to keep: the
    heads of the `circuit`, a list of heads (`[a3.h1, a4.h0]`), or `null`, nobody's."""
    export: Annotated[list[ExportFormat], AfterValidator(different)] | None = execution(None)
    """Also write every graph in [formats of other programs](../docs/circuits.md#files-of-other-programs), next to its
    `.pt`: `eap_ig_json`, `eap_ig_pt`, `mib_folder`, `graphml`, `circuit_tracer_json`, `circuitkit_scores`."""
    export_json: bool = execution(False)
    """The same as `export: [eap_ig_json]`."""

    @model_validator(mode="after")
    def _some_stay_here(self) -> CircuitsConfig:
        lacking = lacking_in_files(self.level, positions=self.positions)
        if lacking and self.formats:
            way_out = " or positions" if self.positions else ", or use level=node"
            raise ValueError(f"export: files of other programs have no {lacking}; leave out export{way_out}")
        return self

    @property
    def formats(self) -> list[ExportFormat]:
        """The formats to export."""
        asked = self.export or []
        return ["eap_ig_json", *asked] if self.export_json and "eap_ig_json" not in asked else asked

    def name_in_results(self, task: str) -> str:
        """The task itself, or with what is unusual of `VARIANTS`: `ioi@eap`.

        A circuit that is given has no method, and its file says the level.
        """
        keys = {name: attrgetter(name)(self) for name in VARIANTS}
        variant = variant_name(keys if self.circuit is None else keys | {"eap.method": USUAL_METHOD, "level": "edge"})
        return f"{task}@{variant}" if variant else task

    def unread(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Adds what a circuit that is given does not need."""
        yield from super().unread(prefix)
        if self.circuit is None:
            return
        for name in ("eap", "exact", "level"):
            if getattr(self, name) != type(self).model_fields[name].default:
                yield f"{prefix}{name}", "with circuit: the scores are those of its file"
        for name in ("threshold", "criterion", "grid", "selection", "sizes"):
            if getattr(self.search, name) != SearchConfig.model_fields[name].default:
                yield f"{prefix}search.{name}", "with circuit: its edges are those of its file"


def circuit_pairs(settings: PairSettings, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """The prompt pairs of a circuit; with `evaluate_on: heldout` the first half is to score, the other to evaluate.

    Raises:
        UserError: if a pair cannot be used under this tokenizer, or there are too few, with the number that works.
    """
    asked, heldout = settings.n_prompts or task.usual, settings.evaluate_on == "heldout"
    n = 2 * asked if heldout and asked is not None else asked
    try:
        pairs = task.pairs(tokenizer, n, settings.seed, settings)
    except TooFewPrompts as error:
        if not heldout or asked is None or error.total < 2:
            raise
        same = "evaluate_on=same" if asked <= error.total else f"n_prompts={error.total} evaluate_on=same"
        raise UserError(
            f"n_prompts: {asked} prompts of {error.task} asked for, and as many others to evaluate on, but it can make "
            f"only {error.total}; pass n_prompts={error.total // 2} or {same}"
        ) from None
    if heldout and len(pairs) < 2:
        raise UserError(
            f"evaluate_on: heldout needs two prompts, one to score and one to evaluate on, but {task.name} has one; "
            "add rows, or pass evaluate_on=same"
        )
    return pairs


def check_attention(config: CircuitsConfig, shape: Shape | PlainShape) -> None:
    """Refuse heads in `attention` that the model has not got, with a UserError."""
    named = config.attention if isinstance(config.attention, list) else ()
    require_heads("attention", named, shape.n_layers, shape.n_heads)


def inputs_of_circuits(config: CircuitsConfig, tokenizer: PreTrainedTokenizerBase, shape: PlainShape) -> Iterator[Work]:
    """The prompts of each task; errors are those of `circuit_pairs`, or that there is no such file or head."""
    check_attention(config, shape)
    if config.circuit is not None and not Path(config.circuit).exists():
        raise UserError(f"circuit: {config.circuit}: no such file")
    for task in tasks_of(config):
        given = config.circuit is not None
        yield Work(task.name, circuit_pairs(config, task, tokenizer), passes(config, shape.n_layers, given=given))


def passes(settings: CircuitSettings, n_layers: int, *, given: bool = False) -> float:
    """About how many forward passes over all its prompts a circuit takes; 0 where it depends on what is not known yet:
    of exact scores the number of edges, of a model without a config that of layers."""
    eap, search = settings.eap, settings.search
    times = 2 * n_layers + 1 if eap.method == "eap_ig_activations" else 1
    if (eap.method == "exact" and not given) or times > sys.maxsize:
        return 0
    # A step runs forward and backward, which takes three times as long as forward. A size takes about a third of a
    # pass, and so do a random circuit and what is left without it; edge by edge, memory takes about fifty times that.
    slower = 50 if settings.accumulate_evaluation == "model" else 1
    steps = eap.steps(settings.ablation)
    scores = 3 * times * (USUAL_POINTS if steps == "auto" else steps if eap.method in USUAL_STEPS else 1)
    circuits = 1 + slower * ((14 if search.sizes is None else 0.35 * len(search.sizes)) + 7 * search.mib)
    if given:  # One circuit, without scores and a search.
        scores, circuits = 0, 1 + slower * (0.35 + 7 * search.mib)
    checks = slower * (0.7 * settings.n_random + 70 * settings.hypothesis_tests)
    # Scores take one half of the prompts, and circuits the other; means are those of all.
    means = 1 if "mean" in settings.ablation else 0
    return means + (scores + circuits + checks) / (2 if settings.evaluate_on == "heldout" else 1)


def check_transfer(config: CircuitsConfig, store: Store, model: str, steps: Sequence[int]) -> None:
    """Refuse a step in `transfer` without a circuit, or `matched_transfer` without matches, with a UserError."""
    if config.matched_transfer:
        from ..results.commands import how_to_compare
        from ..results.comparison import ComparisonFolder

        for name in ("level", "positions"):
            if (value := getattr(config, name)) != type(config).model_fields[name].default:
                raise UserError(f"matched_transfer: carries circuits of edges alone; leave out {name}={value}")
        compared = ComparisonFolder(store.root)
        if not {*store.models("graphs")} - {model}:
            raise UserError(
                f"matched_transfer: {store.root / 'graphs'} has no model but {model} to take circuits from; "
                f"measure circuits and signatures of another one"
            )
        if not (compared.has("matches") and compared.matches_of(model)):
            raise UserError(
                f"matched_transfer: {store.root / 'comparison'} has no matches of {model}; "
                f"run: {how_to_compare(store.root, match_heads=True)}"
            )
    if isinstance(config.transfer, list):
        for task in tasks_of(config):
            there = sorted({*steps, *store.folder("graphs", model, task.name).steps()})
            if absent := sorted(set(config.transfer) - set(there)):
                raise UserError(
                    f"transfer: step {absent[0]} is neither a checkpoint of this run nor in the results of {model} "
                    f"{task.name}; name others (there: {shortened(there)})"
                )


def tasks_of_transfer(config: CircuitsConfig) -> Sequence[Task]:
    """The tasks of the second walk; none unless `transfer` asks for it."""
    return [] if config.transfer is None else tasks_of(config)


def tasks_of_matched_transfer(config: CircuitsConfig) -> Sequence[Task]:
    """The tasks of the walk with the circuits of other models; none unless `matched_transfer` asks for it."""
    return tasks_of(config) if config.matched_transfer else []
