# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading a sweep over training
#
# `get_circuits_over_time.py` measures the circuit of every task at every checkpoint of a model and leaves a folder of
# small files. This notebook reads such a folder: what is in it, when tasks are learned, when circuits form, whether
# they stay, and which heads come and go. It asks the questions in the order in which a sceptical reader would.
#
# Everything is read with `cot.results` and `cot.read_circuit`, and drawn with the same functions as in the scripts of
# `plotting/`, so `python plotting/plot_<subject>.py` gives you every figure here too.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display

import circuits_over_time as cot
from circuits_over_time.notebooks.support import start
from circuits_over_time.plotting.parts.circuit_similarity import edges_of
from circuits_over_time.plotting.parts.panels import Line, Panels
from circuits_over_time.plotting.parts.style import ModelLook, model_looks
from circuits_over_time.plotting.parts.theme import SERIES
from circuits_over_time.plotting.parts.time_axis import TimeAxis
from circuits_over_time.plotting.plot_circuit import draw_circuit
from circuits_over_time.plotting.plot_circuit_similarity import draw_similarity, similarities
from circuits_over_time.plotting.plot_circuits import draw_circuits, selected_circuits
from circuits_over_time.plotting.plot_faithfulness_curve import draw_curves
from circuits_over_time.plotting.plot_head_scores import draw_top_heads

show = start(figures="png")  # "interactive": hover and zoom while you work

# %% [markdown]
# ## Choose the sweep
#
# `RESULTS` is a folder of results and `MODEL` what its sweep was run on: after `python get_circuits_over_time.py -c
# configs/ioi_160m.yml`, set `MODEL = "pythia-160m"` and `TASKS = ["ioi"]`. If the folder has fewer than three
# checkpoints of a kind, the notebook measures that kind itself, at `CHECKPOINTS`, into a temporary folder, and says
# so. For the toy family that takes a minute or two. For a Pythia, run the scripts instead, on a GPU.

# %% tags=["parameters"]
RESULTS = "results"
MODEL = "model_cache/toy"
CHECKPOINTS = [0, 64, 300, 450, 600, 750, 1050, 1350]
TASKS = ["ioi", "greater_than", "gendered_pronoun", "sva"]
N_PROMPTS = 60

# %%
model = Path(MODEL).name
temporary = tempfile.TemporaryDirectory()


def results_of(script, kind, *settings, tasks=(None,)):
    """The folder that holds a script's results for the model: RESULTS, or the temporary one, filled here."""
    nothing = pd.DataFrame(columns=["kind", "model", "task", "checkpoints"])
    there = cot.results(RESULTS) if Path(RESULTS).is_dir() else nothing
    there = there[(there["kind"] == kind) & (there["model"] == model)]
    counts = [
        int(there.loc[there["task"].eq(task) if task else there["task"].isna(), "checkpoints"].sum()) for task in tasks
    ]
    if min(counts) >= 3:
        display(Markdown(f"`{RESULTS}` holds {min(counts)} checkpoints by `{script}`."))
        return Path(RESULTS)
    display(Markdown(f"`{RESULTS}` lacks results of `{script}`; measuring {len(CHECKPOINTS)} checkpoints."))
    settings = [f"model={MODEL}", f"checkpoints={CHECKPOINTS}", f"results_dir={temporary.name}", *settings]
    subprocess.run([sys.executable, script, *settings], check=True, capture_output=True)
    return Path(temporary.name)


results = results_of(
    "get_circuits_over_time.py",
    "graphs",
    f"task=[{', '.join(TASKS)}]",
    f"n_prompts={N_PROMPTS}",
    "eap.ig_steps=12",
    tasks=TASKS,
)
head_results = results_of(
    "get_full_model_components_over_time.py", "components", "seq_len=18", f"n_prompts={N_PROMPTS}"
)

# %% [markdown]
# ## What is there?
#
# There is one folder for each kind, model and task, and one file for each checkpoint. A file that exists is complete,
# so you can read what is there while a sweep is still running.

# %%
found = pd.concat([cot.results(results), cot.results(head_results)], ignore_index=True)
found = found.drop_duplicates().query("model == @model")
found[found["kind"].isin(["graphs", "faithfulness", "baselines", "components"])].fillna("").reset_index(drop=True)

# %% [markdown]
# The `run.json` next to the files says how they were made. All results in a folder come from one set of settings (the
# runner refuses others), so there is nothing to compare, only something to know:

# %%
record = json.loads((results / "graphs" / model / TASKS[0] / "run.json").read_text())
names = ["n_prompts", "eap.ig_steps", "eap.quadrature", "search.threshold", "evaluate_on", "seed"]
pd.DataFrame([{name: record["settings"][name] for name in names} | {"torch": record["versions"]["torch"]}])

# %% [markdown]
# It also holds a hash of each checkpoint's weights. Two steps with the same hash have the same weights. That has
# happened with published revisions, and it would look like a phase in which nothing changes:

# %%
hashes = pd.Series({int(step): entry["sha256"] for step, entry in record["checkpoints"].items()}).sort_index()
same = hashes.index[hashes.duplicated(keep=False)]
Markdown(f"Steps with the same weights as another: {', '.join(map(str, same)) or 'none'}.")

# %% [markdown]
# ## Is there anything to explain yet?
#
# Ask this before you look at any circuit. Below is the status of each checkpoint: `task not learned` means that clean
# and corrupted prompts score the same. Whatever edges were scored there, they explain noise.


# %%
def table(kind):
    """All rows of a kind of results, of the tasks above."""
    rows = cot.results(results, kind, model)
    return rows[rows["task"].isin(TASKS)]


baselines = table("baselines")
found = baselines[baselines["status"] == "found"]
assert len(found), "no task is learned at any checkpoint measured, so there is no circuit to read: measure later ones"
baselines.pivot(index="step", columns="task", values="status")[TASKS]

# %% [markdown]
# ## Size and faithfulness over training
#
# Three rows: how many edges the smallest circuit needs that reaches the threshold, how faithful that circuit is, and
# what the whole model scores on clean (solid) and corrupted (dotted) prompts. **Read from the bottom**: where the two
# lines of the last row separate, the task is learned; circuits before that are gaps. Bands are 95% intervals.

# %%
looks = model_looks([model])
faithfulness = table("faithfulness")
chosen = selected_circuits(faithfulness, baselines)
show(draw_circuits(chosen, looks, "edges", {task: cot.task(task).primary for task in TASKS}))

# %% [markdown]
# **The toy family** learns the four tasks one after the other: pronouns and verbs first and gradually, then
# greater-than, and IOI suddenly, about half way. The circuits of the two agreement tasks shrink to half and less
# while the task is mastered; that of greater-than does not; IOI's is tiny from the moment it exists.
#
# The same numbers as a table for one task, with the 95% interval of the size (open if resampled prompts find no
# circuit). The earliest rows are a warning: the difference between clean and corrupted prompts is real there, but tiny,
# and so is what the many edges of that circuit explain.

# %%
columns = ["task", "step", "full", "corrupted", "status", "size", "size_low", "size_high", "cpr"]
shown = "gendered_pronoun" if "gendered_pronoun" in TASKS else TASKS[0]
found.loc[found["task"] == shown, columns].reset_index(drop=True)

# %% [markdown]
# ## How sharp is "the" size?
#
# A size is where a curve crosses a threshold. If the curve is steep there, the size means something; if it creeps
# along the threshold, a little noise moves it far. **Look at** the slope at the rings before you read anything into a
# size that changes.

# %%
show(draw_curves(faithfulness[faithfulness["step"].isin(found["step"])], model, 5))

# %% [markdown]
# ## Does the circuit stay the same?
#
# Each circuit against that of the checkpoint before: shared nodes, shared edges, and edges weighted by their score (1
# is the same circuit), then how many edges were added and removed. Unweighted edges count the weak ones at the fringe
# as much as the backbone; **trust** the weighted line more.

# %%
by_task = {  # task -> step -> edges
    task: dict(list(rows.groupby("step"))) for task, rows in table("graphs").groupby("task", sort=False)
}
comparable = {(model, task): by_step for task, by_step in by_task.items() if len(by_step) > 1}
if comparable:
    show(draw_similarity(similarities(comparable, None, 0.5), looks, "the checkpoint before"))

# %% [markdown]
# ## What is in it? Before and after
#
# The first and the last circuit of a task, and the edges they share. IOI is the interesting one in the toy family:
# the decisive head of the final model ([ioi_circuit](ioi_circuit.ipynb)) is there from the start.

# %%
task = TASKS[0]
by_step = by_task.get(task, {})
if len(by_step) > 1:
    first, last = min(by_step), max(by_step)
    for step in (first, last):
        edges = by_step[step]
        title = f"{cot.task(task).label} circuit of {model} at step {step:,}"
        show(draw_circuit(edges.head(60), title, f"{len(edges)} edges; the {min(len(edges), 60)} strongest drawn"))
    a, b = edges_of(by_step[first]), edges_of(by_step[last])
    told = f"Step {first:,}: {len(a)} edges. Step {last:,}: {len(b)} edges. Shared: {len(a.keys() & b.keys())}."
else:
    told = f"{task}: fewer than two checkpoints have a circuit."
Markdown(told)

# %% [markdown]
# ## One edge over training
#
# Circuits hold the edges that were *chosen*. The `.pt` files next to them hold the score of **every** edge at every
# checkpoint, even where nothing was chosen, so you can follow an edge from before it mattered. Here are the strongest
# edges of the last circuit, as a share of the gap between clean and corrupted prompts at the last checkpoint (a score
# is in units of the metric).

# %%
steps = sorted(baselines.loc[baselines["task"] == task, "step"])
graphs = {step: cot.read_circuit(results / "graphs" / model / task / f"step{step:06d}.pt").circuit for step in steps}
strongest = graphs[steps[-1]].to_table().head(5)
tokens = baselines.drop_duplicates("step").set_index("step")["tokens"]
final = baselines[(baselines["task"] == task) & (baselines["step"] == steps[-1])].iloc[0]
gap = final["full"] - final["corrupted"]
traces = []
for source, target in edges_of(strongest):
    index = graphs[steps[-1]].graph.edge_index(f"{source}->{target}")
    for step in steps:
        share = float(graphs[step].scores[index]) / gap
        traces.append({"step": step, "tokens": tokens[step], "edge": f"{source} → {target}", "share of the gap": share})
traces = pd.DataFrame(traces, columns=["step", "tokens", "edge", "share of the gap"])
if len(traces):
    panels = Panels(1, 1, TimeAxis.of(traces), panel_height=300)
    for number, (edge, part) in enumerate(traces.groupby("edge", sort=False)):
        name = edge.replace("<", "&lt;").replace(">", "&gt;")
        panels.draw(Line(part, "share of the gap", name, ModelLook(SERIES[number], "circle", "solid")), 1, 1)
    panels.figure.update_yaxes(title_text="score (share of the final gap)", row=1, col=1)
    show(panels.done(f"The strongest edges of the last {cot.task(task).label} circuit", f"{model}; scores by EAP-IG"))

# %% [markdown]
# ## Which heads come with it?
#
# Head scores are measured without any task, so they are independent evidence. **Look for** heads whose score rises
# when the task is learned: a reason to look closer, not yet a cause.

# %%
show(draw_top_heads(cot.results(head_results, "components", model), model, 3))

# %% [markdown]
# **The toy family** has copying heads in layer 2 early, long before it solves IOI. What rises exactly when IOI begins
# (between steps 450 and 600) is the *negative* copying of one head of the last layer, the head at the top of the
# circuit above. Induction comes only after that: a second reason to believe that IOI does not rest on it here. A
# correlation over training proves nothing, but it can rule something out: what comes later cannot be the cause.
#
# ## Five ways to misread a sweep
#
# 1. Reading circuits of a task that is not learned. Look at the status first.
# 2. Reading a change of size without the slope of the faithfulness curve, or without the interval.
# 3. Counting edges where weights matter: two circuits can share half of their edges and nearly all of their score.
# 4. Taking a phase without change for stability, without looking at the hashes of the weights.
# 5. Taking one corruption for the task. A circuit holds what *differs* between the prompts and their corruptions, and
#    nothing else.
