"""Figures for a paper: the size, the text and the colours that were asked for, and nothing on top of each other."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.colors import sample_colorscale
from plotly.io.json import to_json_plotly

from circuits_over_time.plotting import plot_circuits, plot_handovers, plot_ioi_consistency
from circuits_over_time.plotting.make_report import main as make_report
from circuits_over_time.plotting.parts.options import Style, pixels
from circuits_over_time.plotting.parts.panels import Line, Panels
from circuits_over_time.plotting.parts.paper import _fewest_ticks, _Panel, fold, styled, text_width
from circuits_over_time.plotting.parts.roles import ROLES
from circuits_over_time.plotting.parts.style import Drawing, ModelLook, finish
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.parts.theme import (
    COLOURS,
    DARK,
    INK,
    PALETTES,
    POSITIVE,
    SERIES,
    WHITE,
    Theme,
    as_hex,
    contrast,
    drawn_in,
    luminance,
    paint,
    painted_scale,
)
from circuits_over_time.plotting.parts.time_axis import TimeAxis
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.store import Store
from tests.plotting.test_report import embedded
from tests.plotting.test_style import VISION, lab
from tests.support import drawings
from tests.support.paths import ROOT
from tests.support.print_check import SCRIPTS, Printer, drawings_of, printer, results_of

SCRIPT = plot_ioi_consistency
EVALUATION = {"results": {"arc_easy": {"acc": 0.3, "acc_stderr": 0.01}, "piqa": {"acc": 0.6, "acc_stderr": 0.01}}}


@pytest.fixture(scope="module")
def everything(compared: Store, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Made-up results that have every figure, and evaluations."""
    folder = tmp_path_factory.mktemp("evaluations")
    (folder / "pythia-70m").mkdir()
    (folder / "pythia-70m" / "70m-step1000.json").write_text(json.dumps(EVALUATION | {"config": {"num_fewshot": 0}}))
    return results_of(compared, folder)


@pytest.fixture(scope="module")
def every_figure(everything: Results) -> dict[str, Drawing]:
    return drawings_of(everything)


@pytest.fixture(scope="module")
def page() -> Iterator[Printer]:
    with printer() as started:
        yield started


TABLE = pd.DataFrame({"step": [1, 10, 100], "tokens": [10, 100, 1000], "v": [0.0, 0.2, 0.95]})
BLACK = ModelLook("#000000", "circle", "solid")


def simple(n_columns: int = 1) -> Drawing:
    traces = [go.Scatter(x=[1, 10, 100], y=[0, 1, 2], name=f"a line, {i}") for i in range(n_columns)]
    return finish(go.Figure(traces), "A title", "and what is below it", width=600, height=300)


@pytest.mark.browser
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_figure_fits_a_column_of_a_paper(script: str, every_figure: dict[str, Drawing], page: Printer) -> None:
    own = {name: drawing for name, drawing in every_figure.items() if name.startswith(f"{script}: ")}
    assert own, "made-up results have every figure"
    # One figure of a kind is enough here; the long tests have all, and other sizes.
    for name, drawing in list(own.items())[:2]:
        figure = styled(drawing, Style(width="3.25in"))
        page.show(figure)
        assert page.size() == [312, pytest.approx(figure.layout.height, abs=0.1)], name
        assert page.faults() == [], name


@pytest.mark.browser
def test_text_has_the_size_that_was_asked_for(every_figure: dict[str, Drawing], page: Printer) -> None:
    drawing = next(drawing for name, drawing in every_figure.items() if name.startswith("plot_circuits: "))
    for asked, title in (("8pt", True), ("7pt", False), ("9pt", True)):
        page.show(styled(drawing, Style(width="5.5in", font_size=asked, title=title)))
        text = round(float(asked[0]) * 96 / 72, 2)
        assert page.text_sizes() == {text, round(1.2 * float(asked[0]) * 96 / 72, 2)} if title else {text}


@pytest.mark.browser
def test_files_have_the_size_that_was_asked_for(store: Store, tmp_path: Path) -> None:
    options = ["--width", "5.5in", "--height", "2.4in", "--scale", "3", "--format", "pdf,svg,png,html", "--no-title"]
    assert drawings.run(SCRIPT, "-r", store.root, "-o", tmp_path, *options) == 0
    box = re.search(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "ioi_consistency.pdf").read_bytes())
    assert box is not None
    assert [float(box[1]), float(box[2])] == [396, pytest.approx(172.8, abs=0.8)]
    svg = ElementTree.parse(tmp_path / "ioi_consistency.svg").getroot()
    assert [float(svg.attrib["width"]), float(svg.attrib["height"])] == [528, pytest.approx(230.4, abs=0.1)]
    sizes = re.findall(r"font-size: ([\d.]+)px", ElementTree.tostring(svg, encoding="unicode"))
    assert {round(float(size), 1) for size in sizes} == {10.7}, "8 pt"
    png = (tmp_path / "ioi_consistency.png").read_bytes()
    assert [int.from_bytes(png[16:20]), int.from_bytes(png[20:24])] == [3 * 528, pytest.approx(3 * 230.4, abs=3)]
    assert "Is the IOI algorithm" not in (tmp_path / "ioi_consistency.svg").read_text()
    assert '"width":528' in (tmp_path / "ioi_consistency.html").read_text()


def test_without_a_style_figures_are_those_of_the_screen(every_figure: dict[str, Drawing]) -> None:
    for drawing in list(every_figure.values())[:3]:
        assert styled(drawing, Style(format="svg,png", scale=4)).to_json() == drawing.titled().to_json()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_height_is_kept_or_refused(script: str, every_figure: dict[str, Drawing]) -> None:
    for name, drawing in every_figure.items():
        if name.startswith(f"{script}: "):
            assert styled(drawing, Style(width="5.5in", height="40in")).layout.height == 40 * 96
            with pytest.raises(UserError, match=r"height: '.*' needs .*in at this width"):
                styled(drawing, Style(width="5.5in", height="1in"))
            return


def test_panels_stand_in_as_many_columns_as_fit(every_figure: dict[str, Drawing]) -> None:
    drawing = next(drawing for name, drawing in every_figure.items() if name.endswith(": ioi_backup"))

    def columns(width: str) -> int:
        layout = styled(drawing, Style(width=width)).layout
        return len({round(layout[name].domain[0], 3) for name in layout if re.fullmatch(r"xaxis\d*", name)})

    assert [columns(width) for width in ("2in", "3.25in", "8in")] == [1, 2, 4]


def test_a_reason_that_does_not_fit_is_below_with_the_name_of_its_row() -> None:
    figure = go.Figure(go.Scatter(x=[0, 9], y=[0, 1]))
    figure.update_yaxes(tickvals=[0, 1], ticktext=["first", "second"])
    look = {"xanchor": "left", "align": "left", "showarrow": False}
    figure.add_annotation(text="a remark on the first", x=0, y=0.05, **look)
    figure.add_annotation(text="not here: " + "for a long reason " * 9, x=0, y=1.05, **look)
    drawn = styled(finish(figure, "A title", width=600, height=300), Style(width="3.25in"))
    assert [note.text.partition(" for")[0] for note in drawn.layout.annotations][1:] == ["not here", "second:"]


def test_lines_and_marks_follow_the_size() -> None:
    drawn = simple().figure
    drawn.update_traces(line_width=2, marker_size=6)
    drawing = Drawing(drawn, "A title")
    small, large = (styled(drawing, Style(width=width)).data[0] for width in ("2.5in", "8in"))
    assert small.line.width < large.line.width < 2
    assert small.marker.size < large.marker.size < 6


def test_text_folds_between_words_and_keeps_its_markup() -> None:
    text = "one <b>two three</b> four"
    folded = fold(text, 4.5)
    assert folded.count("<br>") == 1
    assert folded.replace("<br>", " ") == text
    assert max(map(text_width, folded.split("<br>"))) <= 4.5
    assert fold("an unbreakablelongword", 3) == "an<br>unbreakablelongword"
    assert text_width("<span style='color:#555'>ab</span><br>c") == text_width("ab")


@pytest.mark.parametrize("text", ["1in", "2.54cm", "25.4mm", "72pt", "96px", " 1 IN "])
def test_an_inch_is_96_pixels_however_it_is_written(text: str) -> None:
    assert pixels(text) == pytest.approx(96)


WRONG = [
    ("width", "5.5", "width: '5.5' is not a length with a unit (in, cm, mm, pt, px); write 5.5in or 140mm"),
    ("width", "5 foot", "width: '5 foot' is not a length with a unit"),
    ("width", "-3in", "width: -3in; ask for 1in to 100in"),
    ("height", "0.1in", "height: 0.1in; ask for 1in to 100in"),
    ("font-size", "200pt", "font-size: 2.78in; ask for 3pt to 72pt"),
    ("theme", "drak", "theme: 'drak' is not a theme, nor the .json or .yml of a plotly template; did you mean 'dark'?"),
    ("palette", "tol-bridht", "palette: 'tol-bridht' is not a palette; did you mean 'tol-bright'?"),
    ("format", "svg,gif", "format: gif given; choose from html, png, pdf, svg"),
    ("scale", "big", "scale: 'big' is not a number"),
    ("scale", "0", "scale: "),
]


@pytest.mark.parametrize(("flag", "value", "says"), WRONG)
def test_a_wrong_flag_is_told_in_one_line(
    flag: str, value: str, says: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert drawings.run(SCRIPT, "-r", store.root, "-o", tmp_path, f"--{flag}", value) == 2
    said = caplog.records[-1].getMessage()
    assert said.startswith(f"--{says}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("widht: 5in", "widht: unknown key; did you mean 'width'?"),
        ("width: 5", "width: '5' is not a length with a unit"),
        ("title: maybe", "title: "),
        ("theme: mine.json", "mine.json: no such file"),
    ],
)
def test_a_wrong_style_file_is_told_in_one_line(
    content: str, says: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "style.yml").write_text(content)
    assert drawings.run(SCRIPT, "-r", store.root, "-o", tmp_path, "--style", tmp_path / "style.yml") == 2
    assert says in caplog.records[-1].getMessage()
    assert str(tmp_path) in caplog.records[-1].getMessage()


def test_flags_win_over_the_style_file_and_every_script_takes_them(store: Store, tmp_path: Path) -> None:
    (tmp_path / "style.yml").write_text("width: 82mm\nfont_size: 9pt\ntheme: dark\nformat: [html]\ntitle: false\n")
    assert (
        drawings.run(
            plot_circuits, "-r", store.root, "-o", tmp_path, "--style", tmp_path / "style.yml", "--width", "5in"
        )
        == 0
    )
    page = (tmp_path / "circuits.html").read_text()
    assert '"width":480' in page
    assert '"font":{"color"' in page or '"size":12.0' in page
    assert DARK in page
    for script in SCRIPTS:
        module = importlib.import_module(f"circuits_over_time.plotting.{script}")
        with pytest.raises(SystemExit, match="0"):
            drawings.run(module, "--help")


def test_the_reports_files_take_sizes_and_its_page_does_not(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("baselines", "faithfulness"):
        shutil.copytree(store.root / kind, tmp_path / "results" / kind)
    argv = ["-r", str(tmp_path / "results"), "-o", str(tmp_path / "report.html"), "--width", "5in", "-t", "ioi"]
    assert make_report(argv) == 2
    said = "--width: the page has its own; for files of the figures add --figures FOLDER"
    assert caplog.records[-1].getMessage() == said
    assert make_report([*argv, "-f", str(tmp_path / "figures")]) == 0
    assert '"width":480' in (tmp_path / "figures" / "circuits.html").read_text()


def test_the_reports_page_takes_theme_palette_font_and_size_of_text(store: Store, report: Path, tmp_path: Path) -> None:
    page, results = tmp_path / "report.html", tmp_path / "results"
    for kind in ("baselines", "faithfulness", "graphs", "transfer", "components", "ioi_consistency_heads"):
        shutil.copytree(store.root / kind, results / kind)
    look = ["--theme", "dark", "--palette", "tol-bright", "--font", "Georgia", "--font-size", "13.5pt"]
    assert make_report(["-r", str(results), "-o", str(page), "-t", "ioi", *look]) == 0
    sheets = [found.read_text().partition("<style>")[2].partition("</style>")[0] for found in (report, page)]
    light, dark = (dict(re.findall(r"--(\w+):([^;]*);", sheet)) for sheet in sheets)
    assert (light["page"], dark["page"], dark["font"]) == (WHITE, DARK, "Georgia")
    assert luminance(dark["ink"]) > 0.7
    assert dark["positive"] in [Theme(DARK, (colour,)).paint(POSITIVE) for colour in PALETTES["tol-bright"]]
    # Only colours and sizes differ: no selector is taken for a colour.
    changing = re.compile(r"#[0-9a-f]{3,6}(?=[;,) ])|rgba?\([^)]*\)|[\d.]+px")
    rules = [changing.sub("", sheet[sheet.index("html {") :]) for sheet in sheets]
    assert rules[0] == rules[1]
    assert "font: 18px/1.5 var(--font)" in sheets[1], "13.5pt"
    shown = embedded(page.read_text(), "figure-data")
    assert shown["template"]["layout"]["paper_bgcolor"] == DARK
    for figure in shown["figures"]:
        for note in figure["whole"]["layout"].get("annotations", []):
            assert note["font"].get("size", 18) in (18, pytest.approx(0.85 * 18)), figure["name"]
        colours = {trace["line"]["color"] for trace in figure["whole"]["data"] if trace.get("mode") == "lines+markers"}
        assert not colours & {*SERIES, "#332288"}
    chips = re.findall(r"<i class='swatch' style='border-color:(#\w+)'", page.read_text())
    assert chips == [colour for _, colour in embedded(page.read_text(), "data")["roles"]]
    assert len(set(chips)) == len(ROLES), "a palette of as many colours gives each role its own"


# Colours.


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("vision", ["normal", "protanopia", "deuteranopia"])
@pytest.mark.parametrize("name", PALETTES)
def test_the_lines_of_a_palette_differ_with_any_colour_vision(name: str, vision: str, dark: bool) -> None:
    theme = Theme(DARK if dark else WHITE, PALETTES[name])
    colours = [theme.paint(colour) for colour in COLOURS[: len(PALETTES[name]) or 6]]
    for first, second in itertools.combinations(colours, 2):
        distance = np.linalg.norm(lab(first, VISION[vision]) - lab(second, VISION[vision]))
        assert distance > 9, (first, second)


def test_the_usual_colours_stand_out_on_a_dark_page() -> None:
    theme = Style(theme="dark").look
    assert all(contrast(theme.paint(colour), DARK) > 3 for colour in COLOURS)
    assert contrast(theme.paint(INK), DARK) > 10


@pytest.mark.parametrize(
    "scale", ["Blues", [(0, WHITE), (1, POSITIVE)], [(0, "#b2182b"), (0.5, WHITE), (1, "#2166ac")]]
)
def test_on_a_dark_page_a_scale_stands_out_more_the_farther_it_is_from_its_palest_colour(scale: Any) -> None:
    with drawn_in(Style(theme="dark").look):
        stops = painted_scale(scale)
    drawn = [contrast(as_hex(colour), DARK) for colour in sample_colorscale(stops, 21)]
    palest = int(np.argmin(drawn))
    assert drawn[palest] < 1.3
    assert drawn[:palest] == sorted(drawn[:palest], reverse=True)
    assert drawn[palest:] == sorted(drawn[palest:])


def test_the_last_label_of_the_last_column_is_on_the_page(every_figure: dict[str, Drawing]) -> None:
    layout = styled(every_figure["plot_task_performance: task_performance"], Style(width="3.25in")).layout
    for axis in (layout[name] for name in layout if name.startswith("xaxis")):
        end = axis.domain[1] * layout.width
        assert end + text_width(axis.ticktext[-1]) / 2 * layout.font.size <= layout.width


def test_text_and_lines_stand_out_on_a_dark_page(everything: Results) -> None:
    style = Style(theme="dark", palette="tol-bright")
    with drawn_in(style.look):
        drawn = drawings_of(everything)
    for title, drawing in drawn.items():
        figure = styled(drawing, style)
        layout = figure.layout
        whole = figure.to_plotly_json()
        del whole["layout"]["template"]
        text = to_json_plotly(whole)
        assert not [colour for colour in COLOURS if colour in text], f"{title}: drawn past the palette"
        assert layout.template.layout.paper_bgcolor == layout.template.layout.plot_bgcolor == DARK
        assert contrast(layout.template.layout.font.color, DARK) > 10
        texts = [note for note in layout.annotations if note.font.color and not note.bgcolor]
        # Names of lines have the lines' colours.
        assert all(contrast(note.font.color, DARK) > (3.4 if note.xanchor == "left" else 4.5) for note in texts)
        lines = [trace.line.color for trace in figure.data if trace.type == "scatter" and trace.mode == "lines+markers"]
        assert all(contrast(colour, DARK) > 3 for colour in lines if colour and colour.startswith("#"))


def test_names_on_coloured_bars_are_readable_in_every_theme(everything: Results) -> None:
    n_names = 0
    for page, palette in itertools.product((WHITE, DARK), PALETTES.values()):
        with drawn_in(Theme(page, palette)):
            (drawing,) = plot_handovers.draw(everything).values()
        for note in drawing.figure.layout.annotations:
            if note.bgcolor and note.bgcolor.startswith("#"):
                n_names += 1
                assert contrast(note.font.color, note.bgcolor) > 2.8
    assert n_names > 12


def test_a_palette_gives_every_line_a_colour_of_its_own() -> None:
    palette = PALETTES["tol-muted"]
    with drawn_in(Theme(palette=palette)):
        for colours in (SERIES[:9], COLOURS[-9:], COLOURS[::2]):
            assert sorted(map(paint, colours)) == sorted(palette)
            finish(go.Figure(), "the next figure begins anew", width=600, height=300)
    assert [paint(colour) for colour in COLOURS] == list(COLOURS)


def test_a_plotly_template_is_a_theme(tmp_path: Path) -> None:
    layout = {"paper_bgcolor": "#101010", "font": {"family": "Georgia"}, "colorway": ["#ff00ff"]}
    (tmp_path / "mine.json").write_text(json.dumps({"layout": layout}))
    style = Style(theme=str(tmp_path / "mine.json"))
    with drawn_in(style.look):
        drawing = finish(go.Figure(go.Scatter(x=[1], y=[1], line_color=paint(SERIES[0]))), "A", width=600, height=300)
    figure = styled(drawing, style)
    assert figure.layout.template.layout.font.family == "Georgia"
    assert figure.layout.template.layout.paper_bgcolor == "#101010"
    assert figure.data[0].line.color != SERIES[0], "the template's colours of lines are the palette"
    assert simple().figure.layout.template.layout.paper_bgcolor == WHITE
    (tmp_path / "wrong.yml").write_text("layout: {paper_bgcolour: red}")
    with pytest.raises(UserError, match=r"wrong\.yml: not a plotly template"):
        assert Style(theme=str(tmp_path / "wrong.yml")).look


@pytest.mark.parametrize("page", ["black", "#111", "rgb(17,17,17)", "rgba(17, 17, 17, 1)"])
def test_text_stands_out_from_the_page_of_a_template_however_it_is_written(page: str, tmp_path: Path) -> None:
    (tmp_path / "night.json").write_text(json.dumps({"layout": {"paper_bgcolor": page}}))
    look = Style(theme=str(tmp_path / "night.json")).look
    assert contrast(look.paint(INK), look.page) > 7
    (tmp_path / "other.json").write_text(json.dumps({"layout": {"paper_bgcolor": "midnightblue"}}))
    with pytest.raises(UserError, match=r"other\.json: paper_bgcolor: 'midnightblue': write it as '#rrggbb'"):
        assert Style(theme=str(tmp_path / "other.json")).look
    (tmp_path / "clear.json").write_text(json.dumps({"layout": {"paper_bgcolor": "rgba(0,0,0,0)"}}))
    assert Style(theme=str(tmp_path / "clear.json")).look.page == WHITE


def test_the_documentation_names_every_flag() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    names = [name.replace("_", "-") for name in Style.model_fields if name != "title"]
    assert [name for name in names if f"--{name}" not in page] == []
    assert all(f"`{palette}`" in page for palette in PALETTES)


def test_axes_of_shares_and_probabilities_begin_at_zero(every_figure: dict[str, Drawing]) -> None:
    named = ("probab", "share", "accuracy", "CPR", "Jaccard", "faithfulness", "% of")
    n_axes = 0
    for name, drawing in every_figure.items():
        layout = drawing.figure.layout
        for axis in (layout[key] for key in layout if re.fullmatch(r"yaxis\d*", key)):
            if any(word in (axis.title.text or "") for word in named):
                n_axes += 1
                assert axis.rangemode == "tozero" or (axis.range is not None and axis.range[0] <= 0), name
    assert n_axes > 20


def test_names_at_the_ends_of_lines_stay_in_their_panel() -> None:
    panels = Panels(1, 3, TimeAxis.of(TABLE), names_at_ends=True)
    for column in (1, 2, 3):
        panels.draw(Line(TABLE, "v", "m", BLACK), 1, column)
        panels.name_ends([(1 - 0.01 * i, f"a{i}.h0", "#000000") for i in range(5)], 1, column)
    layout = styled(panels.done("A title", ""), Style(width="3.25in")).layout
    low, high = layout.yaxis.range
    names = [note.y for note in layout.annotations if note.text.startswith("a")]
    assert len(names) == 15
    assert all(low <= y <= high for y in names), "plotly does not draw what is beyond the ends of an axis"
    assert len(set(names)) == 5, "they stand apart"


def test_a_column_whose_lowest_panel_is_empty_has_its_ticks_on_the_panel_above() -> None:
    panels = Panels(2, 4, TimeAxis.of(TABLE), [f"task {i}" for i in range(4)])
    for column in range(1, 5):
        panels.draw(Line(TABLE, "v", "m", BLACK), 1, column)
        if column % 2:
            panels.draw(Line(TABLE, "v", "m", BLACK), 2, column)
        else:
            panels.leave_empty("nothing here", 2, column)
    layout = styled(panels.done("A title", ""), Style(width="3.25in")).layout
    assert [layout[f"xaxis{i}"].showticklabels for i in ("", 2, 3, 4, 5, 7)] == [False, True, False, True, True, True]


def test_a_low_matrix_keeps_the_names_of_its_rows() -> None:
    names = ["10,000,000,000", "20,000,000,000"]
    figure = go.Figure(go.Heatmap(z=[[0, 1], [1, 0]], x=names, y=names))
    drawn = styled(finish(figure, "A title", width=600, height=300), Style(width="296px", font_size="16px"))
    assert drawn.layout.yaxis.domain[1] - drawn.layout.yaxis.domain[0] < 6 * 16 / drawn.layout.height
    assert list(drawn.data[0].y) == names
    assert drawn.layout.yaxis.nticks is None


@pytest.mark.parametrize(("low", "high", "ticks"), [(-0.6, 0.95, 4), (0, 1, 3), (0, 60, 3), (-6, 6.5, 3)])
def test_a_low_panel_has_more_than_one_tick(low: float, high: float, ticks: int) -> None:
    axis = go.layout.YAxis(range=[low, high])
    assert _fewest_ticks(_Panel(go.layout.XAxis(), axis, ("x", "y"), 0, 0, 0, 0, (0, 1))) == ticks
