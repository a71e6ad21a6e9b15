"""Every figure that the results allow: whole for wide screens, and panel by panel for narrow ones.

The figure scripts do the drawing. The page writes headings as text that wraps, and legends as buttons.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.json import to_json_plotly

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.comparison.scale import mean_sizes
from circuits_over_time.utils.config.schedules import tokens_at
from circuits_over_time.utils.results.comparison import ComparisonFolder

from ..parts.style import METRIC_LABELS, TEMPLATE, Drawing, model_looks
from ..parts.tables import load_comparison, models_in, tasks_in
from ..parts.time_axis import TimeAxis
from ..plot_circuit_similarity import draw_similarity, similarities
from ..plot_circuits import draw_circuits, selected_circuits, task_metrics
from ..plot_comparison import draw_between, draw_comparison
from ..plot_controls import control_points, draw_controls
from ..plot_emergence import draw_seed_curves, draw_seeds_timeline, draw_timeline, seed_groups, shapes
from ..plot_faithfulness_curve import draw_areas, draw_curves, measured_areas
from ..plot_handovers import draw_handovers
from ..plot_head_scores import SINGLE, draw_maxima, draw_top_heads, head_scores
from ..plot_ioi_backup import TITLES as BACKUP_PARTS
from ..plot_ioi_backup import draw_backup
from ..plot_ioi_consistency import draw_consistency
from ..plot_ioi_roles import draw_roles
from ..plot_order import draw_order
from ..plot_pythia_evals import choose, draw_evaluations
from ..plot_reproduction import draw_reproduction, panel_title, reproduction_html
from ..plot_size_vs_scale import draw_scale, model_parameters
from ..plot_task_performance import draw_performance
from ..plot_transfer import draw_transfer, matrices
from ..plot_turnover import draw_turnover
from ..published.eval_results import read_evaluations
from ..published.reproduction import reproduction
from .results import Results, escaped, shown

logger = logging.getLogger("plotting")

# Ticks of the training axis that fit a panel as wide as a phone.
_NARROW_TICKS = 6
# Share of its width below which two of its labels touch.
_TOUCH = 0.12
CURVES, TOP_HEADS, EWMA_ALPHA, MEASURE = 6, 5, 0.5, "edge_jaccard"


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        name: unique, also the name of a downloaded image.
        whole: the figure as its script draws it.
        parts: the same panel by panel, for screens too narrow for the whole; empty if the whole has one panel.
        details: HTML that goes below the figure.
    """

    name: str
    whole: Drawing
    parts: list[go.Figure] = field(default_factory=list)
    details: str = ""


def report_figures(results: Results) -> list[ReportFigure]:
    """The figures, in reading order. What cannot be drawn is left out, with a line in the log."""
    figures: list[ReportFigure] = []
    for build, kinds in BUILDERS:
        if not all(results.models(kind) for kind in kinds):
            continue  # The page lists kinds without results.
        try:
            figures += build(results)
        except UserError as error:
            logger.info("left out: %s", error)
    return figures


def _performance(results: Results) -> list[ReportFigure]:
    table = escaped(results.table("task_performance"))
    metrics = [metric for metric in METRIC_LABELS if (table["metric"] == metric).any()]
    metrics += sorted(set(table["metric"]) - set(metrics))

    def draw(rows: pd.DataFrame) -> Drawing:
        return draw_performance(
            rows, [metric for metric in metrics if (rows["metric"] == metric).any()], results.looks()
        )

    return [_by_panel("task_performance", draw, table, "task", tasks_in(table))]


def _circuits(results: Results) -> list[ReportFigure]:
    raw = selected_circuits(results.table("faithfulness"), results.table("baselines"))
    metrics = {shown(task): metric or "task metric" for task, metric in task_metrics(results.store, raw).items()}
    table = escaped(raw)
    return [
        _by_panel(
            "circuits",
            lambda rows: draw_circuits(rows, results.looks(), "edges", metrics),
            table,
            "task",
            tasks_in(table),
        )
    ]


def _similarity(results: Results) -> list[ReportFigure]:
    table = escaped(similarities(results.circuits(), None, EWMA_ALPHA))
    return [
        _by_panel(
            "circuit_similarity",
            lambda rows: draw_similarity(rows, results.looks(), "the checkpoint before"),
            table,
            "task",
            tasks_in(table),
        )
    ]


def _comparison(results: Results) -> list[ReportFigure]:
    raw = load_comparison(results.store, "similarity", results.arguments)
    table = escaped(raw[raw["measure"] == MEASURE])
    looks, between = results.looks(), table[table["against"] == "model"]
    if missing := set(table["model"]) - set(looks):  # Results that are gone.
        looks = model_looks([*looks, *missing])
    over_training = table[table["against"] != "model"]
    figures = [
        _by_panel(
            f"comparison_{model}",
            lambda rows, model=model: draw_comparison(rows, model, MEASURE, looks[model]),  # type: ignore[misc]
            rows,
            "task",
            tasks_in(rows),
        )
        for model in models_in(over_training)
        for rows in [over_training[over_training["model"] == model]]
    ]
    if not between.empty:
        tasks = tasks_in(between)
        figures.append(_by_panel("comparison_models", lambda rows: draw_between(rows, MEASURE), between, "task", tasks))
    return figures


def _controls(results: Results) -> list[ReportFigure]:
    controls, rest = results.table("controls"), (results.table_if_any(kind) for kind in ("graphs", "prompt_groups"))
    points = escaped(control_points(results.table("baselines"), controls, *rest))
    looks = results.looks()
    return [
        _by_panel(
            f"controls_{model}",
            lambda rows, model=model: draw_controls(rows, model, looks[model]),  # type: ignore[misc]
            rows,
            "task",
            tasks_in(rows),
        )
        for model in map(shown, models_in(controls))
        for rows in [points[points["model"] == model]]
    ]


def _turnover(results: Results) -> list[ReportFigure]:
    folder = ComparisonFolder(results.store.root)
    if not folder.has("turnover"):
        return []  # As with the similarities, which say so.
    turnover, lives = (
        escaped(load_comparison(results.store, name, results.arguments)) for name in ("turnover", "lifetimes")
    )
    changes = escaped(folder.read("change_points"))
    figures = []
    for model in models_in(turnover):
        rows = turnover[turnover["model"] == model].drop(columns="tokens")
        tasks = [rows[rows["task"] == task] for task in tasks_in(rows)]
        parts = [_narrow(draw_turnover(part, lives, changes, model, narrow=True).figure, part) for part in tasks]
        figures.append(ReportFigure(f"turnover_{model}", draw_turnover(rows, lives, changes, model), parts))
    return figures


def _order(results: Results) -> list[ReportFigure]:
    if not ComparisonFolder(results.store.root).has("order"):
        return []  # As with the similarities, which say so.
    everything = argparse.Namespace(**{**vars(results.arguments), "task": None})
    order = escaped(load_comparison(results.store, "order", everything))
    emergence = escaped(load_comparison(results.store, "emergence", everything))
    return [
        ReportFigure(
            f"order_{model}",
            draw_order(order, emergence, model),
            [draw_order(order, emergence, model, narrow=True).figure],
        )
        for model in models_in(order)
    ]


def _handovers(results: Results) -> list[ReportFigure]:
    folder = ComparisonFolder(results.store.root)
    if not folder.has("handovers"):
        return []  # As with the similarities, which say so.
    changes = escaped(folder.read("handovers"))
    heads, levels = (escaped(results.table(kind)) for kind in ("ioi_consistency_heads", "ioi_consistency"))
    return [
        ReportFigure(
            f"handovers_{model}",
            draw_handovers(heads, changes, levels, model),
            [draw_handovers(heads, changes, levels, model, narrow=True).figure],
        )
        for model in models_in(heads)
    ]


def _emergence(results: Results) -> list[ReportFigure]:
    folder = ComparisonFolder(results.store.root)
    if not folder.has("emergence"):
        return []  # As with the similarities, which say so.
    raw = load_comparison(results.store, "emergence", results.arguments)
    emergence, curves = escaped(raw), escaped(load_comparison(results.store, "curves", results.arguments))
    figures = []
    for model in models_in(emergence):
        narrow = draw_timeline(emergence, curves, model, narrow=True).figure
        figures.append(ReportFigure(f"emergence_{model}", draw_timeline(emergence, curves, model), [narrow]))
    for group, members in seed_groups(results.store, models_in(raw)).items():
        seeds, name, models = escaped(folder.read("seeds")), shown(group), [shown(model) for model in members]
        whole = draw_seeds_timeline(emergence, curves, name, models)
        narrow = draw_seeds_timeline(emergence, curves, name, models, narrow=True).figure
        figures.append(ReportFigure(f"emergence_seeds_{name}", whole, [narrow]))
        abrupt = {shown(curve): shape for curve, shape in shapes(results.store, group).items()}
        of_group = curves[curves["model"].isin(models) & curves["curve"].isin(seeds["curve"])]
        figures.append(
            _by_panel(
                f"curves_seeds_{name}",
                lambda rows, seeds=seeds, abrupt=abrupt, name=name, models=models: draw_seed_curves(  # type: ignore[misc]
                    rows, seeds, abrupt, name, models
                ),
                of_group,
                "curve",
                list(dict.fromkeys(of_group["curve"])),
            )
        )
    return figures


def _transfer(results: Results) -> list[ReportFigure]:
    table = escaped(results.table("transfer"))
    figures = []
    for model in models_in(table):
        panels = matrices(table, model, None)
        parts = [draw_transfer([panel], model).figure for panel in panels] if len(panels) > 1 else []
        for part in parts:
            part.update_traces(showscale=False)
            part.update_layout(margin={"l": 78, "r": 14})
        if panels:
            figures.append(ReportFigure(f"transfer_{model}", draw_transfer(panels, model), parts))
    return figures


def _curves(results: Results) -> list[ReportFigure]:
    table = escaped(results.table("faithfulness"))
    return [
        _by_panel(
            f"faithfulness_curve_{model}",
            lambda rows, model=model: draw_curves(rows, model, CURVES),  # type: ignore[misc]
            rows,
            "task",
            tasks_in(rows),
        )
        for model in models_in(table)
        for rows in [table[table["model"] == model]]
    ]


def _areas(results: Results) -> list[ReportFigure]:
    table = escaped(measured_areas(results.table("baselines")))
    if table.empty:
        return []  # They are measured only where the config asks for them.
    return [_by_panel("cpr_cmd", lambda rows: draw_areas(rows, results.looks()), table, "task", tasks_in(table))]


def _heads(results: Results) -> list[ReportFigure]:
    if not any(results.models(kind) for kind in ("components", *SINGLE)):
        return []
    table = escaped(head_scores(results.store, results.arguments))
    scores = list(dict.fromkeys(table["score"]))
    figures = [_by_panel("head_scores", lambda rows: draw_maxima(rows, results.looks()), table, "score", scores)]
    figures += [
        _by_panel(
            f"head_scores_{model}",
            lambda rows, model=model: draw_top_heads(rows, model, TOP_HEADS),  # type: ignore[misc]
            rows,
            "score",
            list(dict.fromkeys(rows["score"])),
        )
        for model in models_in(table)
        for rows in [table[table["model"] == model]]
    ]
    return figures


def _consistency(results: Results) -> list[ReportFigure]:
    raw = results.table("ioi_consistency")
    _log_empty_levels(raw)
    table = escaped(raw)
    levels = list(dict.fromkeys(table["level"]))
    whole = draw_consistency(table, results.looks())
    titles = [note.text for note in whole.figure.layout.annotations[: len(levels)]]
    parts = []
    for level, title in zip(levels, titles, strict=True):
        part = draw_consistency(table[table["level"] == level], results.looks()).figure
        # A level by itself would be taken for the first.
        part.layout.annotations[0].text = title
        parts.append(_narrow(part, table))
    return [ReportFigure("ioi_consistency", whole, parts if len(parts) > 1 else [])]


def _roles(results: Results) -> list[ReportFigure]:
    levels, heads = (escaped(results.table(kind)) for kind in ("ioi_consistency", "ioi_consistency_heads"))
    figures = []
    for model in models_in(heads):
        tables = heads[heads["model"] == model], levels[levels["model"] == model]
        narrow = draw_roles(*tables, model, _NARROW_TICKS).figure
        figures.append(ReportFigure(f"ioi_roles_{model}", draw_roles(*tables, model), [narrow]))
    return figures


def _backup(results: Results) -> list[ReportFigure]:
    table = escaped(results.table("ioi_backup"))
    parts = [part for part in BACKUP_PARTS if (table["part"] == part).any()]
    return [_by_panel("ioi_backup", lambda rows: draw_backup(rows, results.looks()), table, "part", parts)]


def _log_empty_levels(table: pd.DataFrame) -> None:
    """Say at how many checkpoints a level has no percentage, and the reason that the results give."""
    if "reason" not in table:
        return
    for (model, level), rows in table.groupby(["model", "level"], sort=False):
        reasons = rows.loc[rows["percent"].isna(), "reason"].fillna("no reason given").value_counts(sort=False)
        for reason, n in reasons.items():
            logger.info(
                "ioi_consistency: %s %s: no percentage at %d of %d steps: %s", model, level, n, len(rows), reason
            )


def _scale(results: Results) -> list[ReportFigure]:
    table = results.table("faithfulness")
    sizes = mean_sizes(table, "nodes")
    if sizes["model"].nunique() < 2:
        return []  # A model has no size to be compared with but another's.
    parameters = model_parameters(results.store, table)
    sizes = sizes[sizes["model"].isin(parameters.keys())]
    if sizes.empty:
        return []
    counts = {shown(model): count for model, count in parameters.items()}
    sizes = escaped(sizes)
    tasks = tasks_in(sizes)
    return [
        _by_panel(
            "size_vs_scale", lambda rows: draw_scale(rows, counts, results.looks(), "nodes"), sizes, "task", tasks
        )
    ]


def _reproduction(results: Results) -> list[ReportFigure]:
    table = reproduction(results.store, results.arguments)
    if table.empty or (table["verdict"] == "not measured").all():
        return []  # Results of other models than the study's.
    panels = table.apply(panel_title, axis=1)
    figure = _by_panel("reproduction", draw_reproduction, table.assign(panel=panels), "panel", list(panels.unique()))
    return [dataclasses.replace(figure, details=reproduction_html(table))]


def _evaluations(results: Results) -> list[ReportFigure]:
    if results.arguments.evaluations is None:
        return []
    table = choose(read_evaluations(results.arguments.evaluations), 0, None)
    table = escaped(table.assign(tokens=[tokens_at(step) for step in table["step"]]))
    benchmarks = list(dict.fromkeys(table["benchmark"]))
    looks = results.looks()
    if missing := set(table["model"]) - set(looks):
        looks = model_looks([*looks, *missing])
    return [_by_panel("pythia_evals", lambda rows: draw_evaluations(rows, looks), table, "benchmark", benchmarks)]


BUILDERS: tuple[tuple[Callable[[Results], list[ReportFigure]], tuple[str, ...]], ...] = (
    (_performance, ("task_performance",)),
    (_circuits, ("faithfulness", "baselines")),
    (_controls, ("controls", "baselines")),
    (_similarity, ("graphs",)),
    (_comparison, ()),
    (_turnover, ()),
    (_transfer, ("transfer",)),
    (_curves, ("faithfulness",)),
    (_areas, ("baselines",)),
    (_heads, ()),
    (_emergence, ()),
    (_order, ()),
    (_consistency, ("ioi_consistency",)),
    (_roles, ("ioi_consistency", "ioi_consistency_heads")),
    (_handovers, ("ioi_consistency", "ioi_consistency_heads")),
    (_backup, ("ioi_backup",)),
    (_scale, ("faithfulness",)),
    (_reproduction, ()),
    (_evaluations, ()),
)
"""What draws figures, and the kinds of result that it needs."""


def _by_panel(
    name: str, draw: Callable[[pd.DataFrame], Drawing], table: pd.DataFrame, column: str, values: list[str]
) -> ReportFigure:
    """The figure of the whole table, and of each value of the column that tells its panels apart."""
    whole = draw(table)
    if len(values) < 2:
        return ReportFigure(name, whole)
    parts = [table[table[column] == value] for value in values]
    return ReportFigure(name, whole, [_narrow(draw(part).figure, part) for part in parts])


def _narrow(figure: go.Figure, table: pd.DataFrame) -> go.Figure:
    """The figure of one panel (or column of panels) with fewer ticks on a training axis and smaller margins."""
    if "tokens" in table and figure.layout.xaxis.tickmode == "array":
        axis = TimeAxis.of(table)
        positions, labels = axis.ticks(_NARROW_TICKS)
        low, high = axis.range()
        # On a phone the labels of step 0 and of a checkpoint close to it would touch.
        if (
            axis.zero is not None
            and len(positions) > 2
            and np.log10(positions[1] / positions[0]) < _TOUCH * (high - low)
        ):
            positions, labels = [positions[0], *positions[2:]], [labels[0], *labels[2:]]
        figure.update_xaxes(tickvals=positions, ticktext=labels)
    return figure.update_layout(margin={"l": 60, "r": max(14, (figure.layout.margin.r or 0) - 14)})


def figures_json(figures: list[ReportFigure]) -> str:
    """The figures as plotly.js takes them: `{"template": ..., "figures": [{name, width, whole, parts}]}`.

    They share one template, which is there once. Arrays are in plotly's binary form.
    """
    entries = []
    for figure in figures:
        records = []
        for drawn in (figure.whole.figure, *figure.parts):
            record = drawn.to_plotly_json()
            for key in ("template", "width", "legend"):
                record["layout"].pop(key, None)
            records.append({"data": record["data"], "layout": record["layout"]})
        entries.append(
            {"name": figure.name, "width": figure.whole.figure.layout.width, "whole": records[0], "parts": records[1:]}
        )
    text: str = to_json_plotly({"template": pio.templates[TEMPLATE].to_plotly_json(), "figures": entries})
    json.loads(text)  # A NaN that slipped through would stop the whole page.
    return text
