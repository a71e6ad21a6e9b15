"""A circuit with the tables that say how good it is: measured, saved, read, shown.

`prepare` and `measure` are what get_circuits_over_time.py hands to the runner.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.choices import ExportFormat
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.formats import (
    BY_ENDING,
    Origin,
    export,
    of_same_graph,
    read,
)
from circuits_over_time.edge_attribution_patching.connected import prune
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.edge_attribution_patching.model.pairs import TokenRoles
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores
from circuits_over_time.edge_attribution_patching.units import Units, of_neurons

from ..base.errors import UserError, errors_of_python, one_line
from ..base.files import atomic_write
from ..config.keys import task_and_method, variant_keys
from ..config.keywords import validated
from ..models.checkpoint import LoadedCheckpoint
from ..results.checked import STAMP
from ..results.edges import bare, by_node, named_targets, with_inputs
from ..results.kinds import (
    BASELINES,
    CONTROLS,
    FAITHFULNESS,
    GRAPHS,
    HYPOTHESIS_TESTS,
    PROMPT_GROUPS,
    WITH_CIRCUIT,
    ResultSchema,
)
from ..results.store import Result, Store, csv_bytes, read_csv
from ..tasks import Task, tasks_of
from ..tasks.performance import task_performance
from ..tasks.prompts import metric_name
from .attention import attention_result
from .find import CircuitPrompts, circuit_prompts, find_circuit, prompts_at, require_units, score_edges
from .keys import CircuitsConfig, CircuitSettings, check_attention
from .tables import baselines_table, compare_with_random, edges_table, faithfulness_table, groups_table

if TYPE_CHECKING:
    import networkx  # type: ignore[import-untyped]
    import plotly.graph_objects as go

log = logging.getLogger(__name__)

KINDS = (GRAPHS, FAITHFULNESS, BASELINES, CONTROLS, PROMPT_GROUPS, HYPOTHESIS_TESTS)
"""The tables of a circuit; `utils/results/kinds.toml` says what each column means."""
SHOWN = 200
"""Of a large circuit, drawings show so many edges of largest |score|."""


@dataclass(frozen=True, repr=False)
class MeasuredCircuit:
    """A circuit, and how good it is.

    Attributes:
        circuit: the scores of all edges and the edges of the circuit, as tensors; no edges if there is no circuit.
        tables: the name of a kind of result -> its table. A circuit read from another program's file has none.
        tensors: what its `.pt` file holds: `circuit`, and the scores of the folds of prompts.
        about: what is known of `model, step, task, metric` and `d_model`.
    """

    circuit: Circuit
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def edges(self) -> pd.DataFrame:
        """The list of edges (`Circuit.to_table`); as far as known also `score_se, q_value, stability, inclusion`.

        Of a circuit of nodes or neurons (`units`), all edges between its nodes, with the score of the source.
        """
        if self.circuit.as_edges is not self.circuit:
            return self.circuit.as_edges.to_table()
        return self.listed

    @property
    def listed(self) -> pd.DataFrame:
        """What its file lists: edges, or nodes or neurons as sources of edges to the logits."""
        return self.tables["graphs"] if "graphs" in self.tables else self.circuit.to_table()

    @property
    def units(self) -> pd.DataFrame:
        """Of a circuit of nodes or neurons, these: `unit, score, ...`, the strongest first; empty for edges."""
        listed = self.listed.drop(columns=["target", "input"]).rename(columns={"source": "unit"})
        return listed if self.circuit.as_edges is not self.circuit else listed[:0]

    @property
    def nodes(self) -> pd.DataFrame:
        """The nodes in the model's order: `node, edges_in, edges_out`, and `score`, the sum of |score| going out.

        With roles of tokens an edge counts once for each role. Of a circuit of nodes or neurons, `score` is the node's,
        or the sum of its neurons', which `units` counts.
        """
        edges = self.edges
        into = edges["target"].astype(str).value_counts()
        scores = edges["score"].abs().groupby(edges["source"].astype(str))
        out, strength = scores.size(), scores.sum()
        names = (*self.circuit.model_graph.plain.forward_nodes, "logits")
        nodes = [name for name in names if name in into or name in out.index]
        columns: dict[str, tuple[pd.Series, type]] = {"edges_in": (into, int), "edges_out": (out, int)}
        columns["score"] = strength, float
        if len(self.units):
            held = by_node(self.listed).set_index("source")
            columns |= {"score": (held["score"], float), "units": (held["units"], int)}
        counts = {name: [kind(held.get(node, 0)) for node in nodes] for name, (held, kind) in columns.items()}
        kinds = {"node": "str"} | {name: kind.__name__ for name, (_, kind) in columns.items()}
        return pd.DataFrame({"node": nodes, **counts}).astype(kinds)  # Of no edges, too.

    @property
    def controls(self) -> pd.DataFrame:
        """Random circuits of its size, and the model without it and without them."""
        return self._table(CONTROLS)

    @property
    def curve(self) -> pd.DataFrame:
        """The faithfulness at every size that was tried."""
        return self._table(FAITHFULNESS)

    @property
    def status(self) -> str:
        """`found`, `found, not confirmed` (of sizes that were given), `task not learned` or `threshold not reached`.

        `given` if a run evaluated a file's, and `not measured` if it was read from another program's file.
        """
        return str(self._baseline("status") or "not measured")

    @property
    def full(self) -> float | None:
        """The metric of the whole model on clean prompts."""
        return self._baseline("full")

    @property
    def corrupted(self) -> float | None:
        """The metric of the empty circuit: of the whole model on corrupted prompts, or ablated."""
        return self._baseline("corrupted")

    @property
    def size(self) -> int | None:
        """Edges of the circuit before pruning; None if there is none."""
        size = self._baseline("size")
        return None if size is None else int(size)

    @property
    def size_interval(self) -> tuple[int | None, int | None]:
        """95% interval of the size. An end is None where no size that was tried is one."""
        low, high = self._baseline("size_low"), self._baseline("size_high")
        return None if low is None else int(low), None if high is None else int(high)

    @property
    def faithfulness(self) -> float | None:
        """(M(circuit) - M(corrupted)) / (M(full) - M(corrupted)); None if there is no circuit."""
        return self._selected("faithfulness")

    @property
    def faithfulness_interval(self) -> tuple[float | None, float | None]:
        """95% interval of the faithfulness; None if there is no circuit, or too few prompts."""
        return self._selected("faithfulness_low"), self._selected("faithfulness_high")

    @errors_of_python()
    def save(self, path: str | Path, format: ExportFormat | None = None) -> None:
        """Save everything as `.pt` (`read_circuit` reads it back), or the circuit in the format of another program.

        Args:
            format: one of those of docs/circuits.md; `.json` is EAP-IG's and `.graphml` GraphML if none is named. For
                `mib_folder` the path is the folder in which `TASK_MODEL/importances.json` is to lie.

        It is a ValueError if the path has another ending, if the format needs to know what this circuit does not say of
        its model, or if nothing can be written there.
        """
        path = Path(path)
        if format is None and path.suffix == ".pt":
            tables = {kind: csv_bytes(table).decode() for kind, table in self.tables.items()}
            stored = {**self.circuit.to_tensors(), **self.tensors, "tables": tables, "about": dict(self.about)}
            torch.save(stored, buffer := BytesIO())
            atomic_write(path, buffer.getvalue())
            return
        ways = f"must end with .pt, {' or '.join(BY_ENDING)}, or name a format: {', '.join(get_args(ExportFormat))}"
        format = format or BY_ENDING.get(path.suffix)
        if format is None:
            raise ValueError(f"path={path}: {ways}")
        if format not in get_args(ExportFormat):
            raise ValueError(f"format={format!r}: not one of {', '.join(get_args(ExportFormat))}")
        needed = ("d_model",) if format in ("eap_ig_json", "eap_ig_pt") else ("d_model", "model", "task")
        if missing := [name for name in needed if name not in self.about]:
            raise ValueError(f"{path}: the circuit does not say its {missing[0]}, which {format} holds; save as .pt")
        about = {"model": "", "task": "", "step": 0, **self.about}
        origin = Origin(str(about["model"]), str(about["task"]), int(about["step"]), int(about["d_model"]))
        try:
            ending, data = export(self.circuit, format, origin)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        atomic_write(path / ending.partition("/")[2] if format == "mib_folder" else path, data)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The edges as a graph of networkx. An edge's key is `q`, `k`, `v` or empty, its attributes its columns.

        With roles of tokens the key names them: `q@end`.
        """
        import networkx

        graph = networkx.MultiDiGraph(**self.about)
        for edge in self.edges.to_dict("records"):
            key = "@".join([edge["input"], *([edge["role"]] if "role" in edge else [])])
            graph.add_edge(edge["source"], edge["target"], key=key, **{str(name): edge[name] for name in edge})
        return graph

    def draw(self, strongest: int = SHOWN, **style: Any) -> go.Figure:
        """An interactive drawing (plotly) of the edges of largest |score|.

        Args:
            style: of the figure scripts' keys, such as `width="3.25in"`, `font_size="8pt"` or `theme="dark"`.

        Raises:
            ValueError: if there is no circuit, no edges are asked for, or a key of the style is wrong.
        """
        from circuits_over_time.plotting.parts.options import Style
        from circuits_over_time.plotting.parts.paper import styled
        from circuits_over_time.plotting.parts.theme import drawn_in
        from circuits_over_time.plotting.plot_circuit import draw_circuit

        if not isinstance(strongest, int) or strongest < 1:
            raise ValueError(f"strongest={strongest!r}: not a number of edges, 1 or more")
        if not len(self.edges):
            raise ValueError(f"there is no circuit to draw: {self.status}")
        edges, words = self._drawn(strongest), self._in_words(strongest)
        if len(self.units):  # Drawn by its nodes, all of them.
            edges, words = self.listed, self._in_words(len(self.edges))
        with errors_of_python():
            chosen = validated(Style, style, style)
            with drawn_in(chosen.look):
                drawing = draw_circuit(edges, f"Circuit{self._of()}", words, columns=self.circuit.model_graph.roles)
            return styled(drawing, chosen)

    def __repr__(self) -> str:
        """Three lines: whose circuit it is, how large and faithful, and what the whole model does."""
        return "\n  ".join((f"{'Circuit' if len(self.edges) else 'No circuit'}{self._of()}", *self.lines()))

    def _repr_html_(self) -> str:
        """A drawing and a short table, without a script or anything to download."""
        title, *lines = (escape(line.strip()) for line in repr(self).split("\n"))
        html = f"<b>{title}</b><br>{'<br>'.join(lines)}"
        if len(self.edges):
            html += svg_of(self._drawn(SHOWN), self.circuit.model_graph.roles) + self.edges[:10].to_html(
                index=False, float_format="{:.3g}".format, border=0
            )
        return html

    def _drawn(self, strongest: int) -> pd.DataFrame:
        """The strongest edges; with roles of tokens, between nodes at roles."""
        from circuits_over_time.plotting.parts.circuit_layout import at_roles

        edges, graph = self.edges.reset_index(drop=True), self.circuit.model_graph
        edges = at_roles(edges, graph) if graph.roles else edges
        return edges[edges.index < strongest].reset_index(drop=True)

    def lines(self) -> list[str]:
        """How large and faithful it is, or why there is none; and what the whole model does."""
        unit, accuracy = self._baseline("unit"), self._baseline("accuracy")
        empty = "ablated" if "ablation" in self.about else "corrupted"
        run = f"{self.about.get('metric') or self._baseline('metric') or 'metric'}{f' ({unit})' if unit else ''}"
        run = "" if self.full is None else f"{run}: whole model {self.full:.3g}, {empty} {self.corrupted:.3g}"
        run += "" if accuracy is None else f"; accuracy {accuracy:.2f}"
        if len(self.edges) or self.status == "not measured":
            return [self._in_words(len(self.edges)), run or self.status]
        best = self.curve.sort_values("faithfulness").tail(1).to_dict("records")
        column = "n_edges" if self._unit == "edges" else "size"  # Between nodes there are more edges than nodes.
        tried = "".join(f"; the best, of {row[column]} {self._unit}, has {row['faithfulness']:.2f}" for row in best)
        return [f"{self.status}{tried}", run]

    def _of(self) -> str:
        task, model, step = (self.about.get(name) for name in ("task", "model", "step"))
        words = (f" of {task}" if task else "", f" in {model}" if model else "")
        return "".join(words) + (f" at step {step:,}" if step is not None else "")

    @property
    def _unit(self) -> str:
        """What its size counts."""
        graph = self.circuit.graph
        return "edges" if not isinstance(graph, Units) else "neurons" if graph.level == "neuron" else "heads and MLPs"

    def _in_words(self, strongest: int) -> str:
        edges, n_nodes = self.edges, self.circuit.n_nodes
        words = f"{len(edges)} edges, {n_nodes} nodes"
        if self._unit != "edges":
            words = f"{self.circuit.n_edges} {self._unit}, {words}"
        if self.faithfulness is not None:
            reason = str(self._baseline("reason") or "")
            words += f", faithfulness {with_interval(self.faithfulness, self.faithfulness_interval, reason, 2)}"
        return words + (f"; the {strongest} strongest edges drawn" if strongest < len(edges) else "")

    def _table(self, kind: ResultSchema) -> pd.DataFrame:
        return self.tables.get(kind.name, pd.DataFrame(columns=list(kind.columns)))

    def _baseline(self, column: str) -> Any:
        table = self._table(BASELINES)
        value: Any = table[column].iloc[0] if len(table) and column in table else None
        if pd.isna(value):
            return None
        return value.item() if hasattr(value, "item") else value

    def _selected(self, column: str) -> float | None:
        selected = self.curve.loc[self.curve["selected"].astype(bool), column]
        return None if selected.empty or pd.isna(selected.iloc[0]) else float(selected.iloc[0])


def with_interval(value: float, ends: tuple[float | None, float | None], reason: str, digits: int) -> str:
    """A number and its interval, or why it has none."""
    if reason or any(end is None for end in ends):
        return f"{value:.{digits}f} (no interval: {reason or 'none is stored'})"
    return f"{value:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def measure_circuit(
    weights: ModelWeights,
    prompts: CircuitPrompts,
    settings: CircuitSettings,
    folds: FoldScores,
    about: Mapping[str, Any] | None = None,
) -> MeasuredCircuit:
    """A circuit by the scores of `score_edges`, and everything that is reported of it; `about` is noted with it."""
    found = find_circuit(weights, prompts, settings, folds)
    kept = found.folds.keep(found.order, max(found.curve.sizes, default=0))
    if prompts.reference is None:
        accuracy = found.evaluator.of_runs(prompts.evaluation.metric("accuracy", weights)).double().mean(1).tolist()
    else:  # The empty circuit is no prompt's run.
        evaluation = prompts.evaluation.to(weights.device)
        accuracy = task_performance(weights, evaluation, ["accuracy"], settings.batch_size)["value"].tolist()
    controls, tests = compare_with_random(found, prompts, settings)
    tables = {
        "graphs": edges_table(found, kept, settings),
        "faithfulness": faithfulness_table(found, prompts),
        "baselines": baselines_table(found, prompts, settings, accuracy),
        "controls": controls,
        "prompt_groups": groups_table(found, prompts),
        "hypothesis_tests": tests,
    }
    tensors = found.circuit.to_tensors() | {"score_se": found.folds.standard_error} | kept.to_tensors()
    noted = {"task": prompts.task.name, "metric": metric_name(prompts.task.primary), "d_model": weights.d_model}
    if settings.ablation != "patching":
        noted["ablation"] = settings.ablation
    return MeasuredCircuit(found.circuit, tables, tensors, noted | dict(about or {}))


def prepare(config: CircuitsConfig, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> dict[str, CircuitPrompts]:
    """The prompts of every task, by its name, with the circuit that is given; errors of `given_circuit`."""
    check_attention(config, shape)
    path, given = Path(config.circuit or ""), None
    if config.circuit is not None and not config.positions:  # Before any prompts are made, where it does not take them.
        given = given_circuit(path, shape, None)
        if of_neurons(given.graph) and config.formats:
            raise UserError(
                f"export: files of other programs have no neurons, and those of {path} are; leave out export"
            )
        if isinstance(given.graph, Units) and config.matched_transfer:
            raise UserError(f"matched_transfer: carries circuits of edges alone, not that of {path}; leave it out")
    prompts = {task.name: circuit_prompts(config, task, tokenizer, shape) for task in tasks_of(config)}
    if config.circuit is None or given is not None:
        return {name: replace(of_task, given=given) for name, of_task in prompts.items()}
    return {name: replace(one, given=given_circuit(path, shape, one.scoring.roles)) for name, one in prompts.items()}


def given_circuit(path: Path, shape: Shape, roles: TokenRoles | None) -> Circuit:
    """The circuit of a file, for a model of this shape and prompts whose tokens have these roles.

    Raises:
        UserError: if it is of another model, or has no edge on a path from `input` to `logits`.
    """
    try:
        read = read_circuit(path, Graph.of(shape, roles))
        if (width := read.about.get("d_model", shape.d_model)) != shape.d_model:
            raise UserError(f"{path}: the circuit is one of a model of width {width}, this one has {shape.d_model}")
        require_units(path, read.circuit.graph, shape)
        if not bool(prune(read.circuit.in_circuit[None], read.circuit.graph).any()):
            raise UserError(f"{path}: none of its {read.circuit.n_edges} edges is on a path from input to logits")
    except UserError as error:
        raise UserError(f"circuit: {error}") from None
    return read.circuit


def measure(
    checkpoint: LoadedCheckpoint, config: CircuitsConfig, inputs: Mapping[str, CircuitPrompts], task: Task
) -> dict[str, Result]:
    """The circuit of one task in one checkpoint."""
    weights, prompts = checkpoint.weights, prompts_at(checkpoint, config, inputs[task.name])
    measured = measure_circuit(weights, prompts, config, score_edges(weights, prompts, config))
    words = "; ".join(measured.lines())
    if measured.status in WITH_CIRCUIT:
        words = f"{measured.status}: {_controls_in_words(measured) if len(measured.controls) else measured.lines()[0]}"
    if config.search.criterion == "raw" and len(measured.curve):
        raw = measured._selected("faithfulness_raw")
        best = measured.curve["faithfulness_raw"].max() if raw is None else raw
        words += f"; by search.criterion=raw {best:.2f}"
    log.info("%s step %d %s: %s", checkpoint.name, checkpoint.step, task.name, words)
    results = {kind: Result(table) for kind, table in measured.tables.items()}
    if config.redraws(task.name):
        texts = {"scoring": prompts.scoring.texts, "evaluation": prompts.evaluation.texts}
        results["baselines"] = Result(measured.tables["baselines"], json=texts)
    heads = config.attention or ()
    if heads == "circuit":
        heads = [node for node in measured.nodes["node"] if ".h" in node]
    results["attention"] = attention_result(checkpoint, prompts.evaluation, heads)
    return results | {"graphs": Result(measured.listed, tensors=measured.tensors)}


def _controls_in_words(measured: MeasuredCircuit) -> str:
    """One line about the random circuits, and why there is no interval if there is none."""
    controls, reason = measured.controls, measured._baseline("reason")
    faithfulness = controls.set_index("control")["faithfulness"]
    n_random = int((controls["control"] == "random").sum())
    beaten = controls.groupby("control")["beaten"].sum()
    # Adding 0 makes 0.00 of -0.00.
    circuit, without = (round(faithfulness[name], 2) + 0 for name in ("circuit", "without_circuit"))
    unsure = f" (no interval: {reason})" if reason else ""
    return (
        f"{measured.circuit.n_edges} {measured._unit}, faithfulness {circuit:.2f}{unsure}, beats {beaten['random']} "
        f"of {n_random} random circuits; without it {without:.2f}, below {beaten['without_random']} of {n_random}"
    )


def read_circuit(path: str | Path, graph: Graph | None = None) -> MeasuredCircuit:
    """A circuit from a file: one that was saved, one of the results, or another program's (`formats.read`).

    Args:
        graph: the graph of the model that it is for. Some files do not say it; in the others it must be this one.

    Raises:
        UserError: if there is no such file, or it holds no circuit of this graph.
    """
    path = Path(path)
    level = variant_keys(task_and_method(path.absolute().parent.name)[1]).get("level")
    if level is not None and path.suffix == ".csv":
        raise UserError(f"{path}: lists {level}s, not edges; name {path.with_suffix('.pt').name} beside it")
    try:
        if path.is_file() and (found := _of_results(path, graph)) is not None:
            return found
        stored = torch.load(path, map_location="cpu", weights_only=True) if path.suffix == ".pt" else {}
        if "forward_nodes" not in stored:
            circuit, about = read(path, graph)
            return MeasuredCircuit(circuit, about=about)
        circuit = of_same_graph(Circuit.from_tensors(stored), graph)
        about = dict(stored.pop("about", {}))
        tables = {kind: read_csv(StringIO(text)) for kind, text in stored.pop("tables", {}).items()}
        return MeasuredCircuit(circuit, _as_measured(tables), stored, about)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError:
        raise
    except Exception as error:
        # torch's own words advise to load what it refuses.
        reason = "torch cannot read it" if isinstance(error, UnpicklingError) else one_line(error)
        way_out = "name a .pt of this project, or a file of EAP-IG, MIB or CircuitKIT, or a CSV of edges"
        raise UserError(f"{path}: holds no circuit ({reason}); {way_out}") from None


def _of_results(path: Path, graph: Graph | None) -> MeasuredCircuit | None:
    """The circuit of a file in a folder of results, with the tables in the folders of the other kinds.

    Raises:
        ValueError: if it is not one of this graph.
    """
    *_, kind, model, task, name = ("", "", "", *path.resolve().parts)
    match = re.fullmatch(r"step(\d{6,18})\.pt", name)
    if kind != GRAPHS.name or match is None:
        return None
    store, step = Store(path.resolve().parents[3]), int(match[1])
    circuits = store.folder(GRAPHS, model, task)
    circuit, tensors = circuits.read_circuit(step)
    circuit = of_same_graph(circuit, graph)
    folders = [folder for kind in KINDS if (folder := store.folder(kind, model, task)).has(step)]
    tables = {folder.kind.name: folder.read_table(step).drop(columns=list(STAMP)) for folder in folders}
    about = {"model": model, "task": task, "step": step}
    if (circuits.path / "run.json").is_file():
        shape = circuits.read_run()["checkpoints"].get(str(step), {}).get("shape", {})
        about |= {"d_model": shape["d_model"]} if "d_model" in shape else {}
    return MeasuredCircuit(circuit, _as_measured(tables), tensors, about)


def _as_measured(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables with the edges as they were before they became text."""
    if "graphs" in tables:
        edges = with_inputs(tables["graphs"])
        tables["graphs"] = edges.astype(dict.fromkeys(edges.columns[3:].difference(["role"]), "float32"))
    return tables


def svg_of(edges: pd.DataFrame, roles: Sequence[str]) -> str:
    """A small drawing of edges: blue ones raise the metric, red ones lower it, and width grows with |score|.

    Those between nodes at roles of tokens have a column for each role.
    """
    from circuits_over_time.plotting.parts.circuit_layout import BOX_HEIGHT, BOX_WIDTH, lay_out
    from circuits_over_time.plotting.parts.theme import NEGATIVE, POSITIVE
    from circuits_over_time.plotting.plot_circuit import edge_ends

    layout = lay_out(zip(edges["source"], edges["target"], strict=True), roles)
    edges = edges.assign(target=named_targets(edges))
    strongest = float(edges["score"].abs().max()) or 1.0
    ranked = edges.sort_values("score", key=abs)
    shapes = []
    for source, target, score in zip(ranked["source"], ranked["target"], ranked["score"], strict=True):
        (x0, y0), (x1, y1) = edge_ends(source, target, layout)
        bend, share = 0.45 * (y1 - y0), (abs(score) / strongest) ** 0.5
        bow = 0.75 if abs(x1 - x0) < BOX_WIDTH and y1 - y0 > 1 else 0  # Around the boxes between.
        ends = f"{x0 + bow:.2f} {-y0 - bend:.2f} {x1 + bow:.2f} {bend - y1:.2f} {x1:.2f} {-y1:.2f}"
        curve = f"M{x0:.2f} {-y0:.2f}C{ends}"
        colour, name = POSITIVE if score >= 0 else NEGATIVE, escape(f"{source}->{target} {score:+.3g}")
        look = f'stroke="{colour}" stroke-width="{0.01 + 0.06 * share:.3f}" opacity="{0.3 + 0.6 * share:.2f}"'
        shapes.append(f'<path d="{curve}" fill="none" {look}><title>{name}</title></path>')
    for node, (x, y) in layout.positions.items():
        box = f'x="{x - BOX_WIDTH / 2:.2f}" y="{-y - BOX_HEIGHT / 2:.2f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
        shapes.append(f'<rect {box} rx=".06" fill="#eef3f7" stroke="#8a8a8a" stroke-width=".015"/>')
        shapes.append(f'<text x="{x:.2f}" y="{0.07 - y:.2f}" font-size=".2" text-anchor="middle">{bare(node)}</text>')
    for role, (left, right) in layout.columns.items():
        shapes.append(
            f'<text x="{(left + right) / 2:.2f}" y=".45" font-size=".2" text-anchor="middle">{escape(role)}</text>'
        )
        shapes.append(f'<path d="M{right:.2f} .2V{-layout.height:.2f}" stroke="#8a8a8a" stroke-width=".01"/>')
    width, height = 2 * layout.half_width + 1.2, layout.height + 1
    view = f"{-width / 2:.2f} {-layout.height - 0.5:.2f} {width:.2f} {height:.2f}"
    style = f"width:{min(900, 70 * width):.0f}px;max-width:100%;display:block;font-family:sans-serif"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" style="{style}">{"".join(shapes)}</svg>'
