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
# # The greater-than circuit of one model, step by step
#
# "The war lasted from the year 1732 to the year 17" → any two digits **greater than 32**. Hanna et al. 2023 ([arXiv
# 2305.00586](https://arxiv.org/abs/2305.00586)) found how GPT-2 small does it:
#
# 1. **attention heads** of the middle layers look from the end of the sentence back at the start year's digits (YY)
#    and bring them there;
# 2. **MLPs** of the later layers turn "the year was YY" into "everything above YY", and write that to the logits.
#
# This notebook takes one checkpoint through the same steps: what it says, where its heads look, which heads and MLPs
# write the answer, *what* they write, through whom, and what the whole circuit is. By default it runs on the small
# family that `make toy` trains in minutes. Every step says what to look for in any model, and then what **the toy
# model** shows.

# %%
import subprocess
import sys
import tempfile

import pandas as pd
import torch

import circuits_over_time as cot
from circuits_over_time.notebooks.drawing import Axis, draw_head_maps, draw_maps, top_heads
from circuits_over_time.notebooks.steps import head_table, heads_of, map_of, show_circuit
from circuits_over_time.notebooks.support import start
from circuits_over_time.plotting.plot_faithfulness_curve import draw_curves

show = start(figures="png")  # "interactive": hover and zoom while you work

# %% [markdown]
# ## Choose the model
#
# This cell is the only one to change. `MODEL` is a Pythia name (`"pythia-70m"`, `"pythia-160m"`, ...; downloaded once
# into `model_cache`), a hub id, or a folder of checkpoints. `STEP` is a training step; `None` takes the last.

# %% tags=["parameters"]
MODEL = "model_cache/toy"
STEP = None
N_PROMPTS = 100

# %%
model = cot.load(MODEL, STEP)
where = f"{model.name}, step {model.step:,}"
size = f"{model.n_layers} layers of {model.weights.n_heads} heads, {model.graph.n_edges:,} edges"
f"{where} ({model.tokens:,} tokens): {size}"

# %% [markdown]
# ## The prompts
#
# Years are two tokens, century and two digits. The corrupted prompt starts in the year **01** of the same century,
# after which every year is allowed: it asks for the same kind of answer but says nothing about which. The one
# position where the two prompts differ is that of the start year's digits, YY.

# %%
task = cot.task("greater_than")
prompts = cot.prompts(model, task, n_prompts=N_PROMPTS)
clean = [text for text, _ in prompts.texts]
yy = (prompts.clean != prompts.corrupted).int().argmax(dim=1)  # [prompt]
pd.DataFrame(prompts.texts, columns=["clean", "corrupted"]).assign(
    **{"right answers": [f"{year % 100 + 1:02d} ... 99" for year in prompts.meta["year"]]}
).head(4)

# %% [markdown]
# ## Can the model do it?
#
# The number to watch is the **probability difference**: P(years above YY) − P(years up to YY). It is 1 for a model
# that never errs. `prob_mass` is the probability of two digits at all.

# %%
performance = cot.performance(model, task, n_prompts=N_PROMPTS)
performance.pivot(index="metric", columns="run", values=["value", "se"]).loc[list(task.metrics)]

# %% [markdown]
# One number hides whether the model has learned *greater than* or a list of likely years. This map does not: each row
# is a start year, each column an answer, as in figure 1 of Hanna et al. **Look for** a sharp diagonal: probability to
# its right, none to its left. Rows are averaged in bins of start years; the first and last years of a century never
# occur.

# %%
token_ids = {number: model.tokenizer.encode(f"{number:02d}", add_special_tokens=False) for number in range(100)}
answers = [number for number, ids in token_ids.items() if len(ids) == 1]  # two digits that are one token
answer_tokens = [token_ids[number][0] for number in answers]
BIN = 5
start_years = torch.tensor([year % 100 for year in prompts.meta["year"]])
bins = sorted({int(year) // BIN for year in start_years})


def by_start_year(values):
    """Mean over the prompts of each bin of start years: [prompt, answer] -> [bin, answer]."""
    return torch.stack([values[start_years // BIN == place].mean(dim=0) for place in bins])


rows = Axis("start year", [f"{BIN * place:02d} to {BIN * place + BIN - 1:02d}" for place in bins])
columns = Axis("answer", [f"{number:02d}" for number in answers])
probabilities = cot.logits(model, clean).softmax(dim=-1)[:, answer_tokens]
show(
    draw_maps(
        {"": by_start_year(probabilities)},
        columns,
        rows,
        "What the model answers, by start year",
        f"{where}; mean over {len(prompts)} prompts; 0.1 and more is darkest",
        "probability",
        signed=False,
        cell=6,
        height_of_cell=17,
        darkest=0.1,
    )
)

# %% [markdown]
# **The toy model** draws the diagonal's left side as it should: next to nothing on years that are too early. To the
# right it is a *band*, not a triangle: it expects the end within about thirty years, which is how spans are in the
# text it was trained on. So it has learned "somewhat later", which contains "greater than". The metric cannot tell
# the two apart.
#
# ## Where do heads look from the end of the prompt?
#
# **Look for** heads that look from END (the last token) at YY. The noun and the century say nothing about the answer.

# %%
places = torch.stack([yy, yy - 1, prompts.positions["end"]], dim=1).cpu()  # [prompt, place]
patterns = [cot.attention(model, text).pattern[:, :, -1, at] for text, at in zip(clean, places, strict=True)]
attention = torch.stack(patterns).mean(dim=0).permute(2, 0, 1)  # [place, layer, head]
show(
    draw_head_maps(
        dict(zip(("END to YY", "END to the century before YY", "END to itself"), attention, strict=True)),
        "Attention from the prompt's end",
        f"{where}; mean over {len(prompts)} prompts",
        "attention",
        signed=False,
        darkest=1.0,
    )
)

# %% [markdown]
# **The toy model** has such heads in almost every layer, two of them in the last, where no later layer can work on
# what they bring.
#
# ## Who writes the answer? Direct effects of heads and MLPs
#
# Change one thing: the *logits* read what one head (or MLP) writes on the corrupted prompt; everything else keeps its
# clean value. The change of the probability difference is its **direct effect**. Like every intervention here, that is
# an *edge mask*: the edges in the mask carry the corrupted run, all others the clean one (`cot.path_effects`, and
# `cot.ablate` for any edges). **Look for** orange: without that message the answer gets worse. In GPT-2 most of it is
# in the MLPs.

# %%
direct = map_of(cot.path_effects(model, task, n_prompts=N_PROMPTS), model)
through_mlps = map_of(cot.path_effects(model, task, through_mlps=True, n_prompts=N_PROMPTS), model)
mlps = [f"m{layer}" for layer in range(model.n_layers)]
of_mlps = cot.path_effects(model, task, mlps, n_prompts=N_PROMPTS)
clean_mean, corrupted_mean = performance.query("metric == 'prob_diff'").set_index("run")["value"][
    ["clean", "corrupted"]
]
show(
    draw_head_maps(
        {"head → logits": direct, "head → MLPs → logits as well": through_mlps},
        "Effect of each head on the probability difference",
        f"Path patching; clean {clean_mean:.2f}, corrupted {corrupted_mean:.2f}",
        "change in probability",
    )
)

# %%
of_mlps.rename(columns={"sender": "MLP", "effect": "direct effect"})

# %% [markdown]
# Where the second panel is darker than the first, the head works *through* MLPs: it brings YY, they compute with it.
#
# **The toy model** does both. The heads of its last layer write to the logits directly (no MLP reads them: in these
# parallel blocks an MLP reads what its own layer's heads read, not what they write); a head of layer 1 has most of
# its effect through the MLPs above it; and the last two MLPs have direct effects of their own. The largest single
# effect belongs to a head of the last layer. That differs from GPT-2, where the MLPs do most of the comparing.
#
# ## What do they write?
#
# Read what each component writes at END as if it were the model's output: through the final LayerNorm (at the scale
# of the run) onto the logits of the two-digit answers, centred over them. Each row is again a start year. **Look
# for** two shapes (figures 5 and 6 of Hanna et al.): a **diagonal** means "YY", the year itself; an upper
# **triangle**, blue right of the diagonal, means "greater than YY": the comparison has been made.

# %%
strongest = [f"a{layer}.h{head}" for layer, head in top_heads(direct, 3)]
of_mlps["strength"] = of_mlps["effect"].abs()
acting = of_mlps[of_mlps["strength"] >= 0.1 * of_mlps["strength"].max()].nlargest(3, "strength").sort_index()
order = strongest + acting["sender"].tolist()
written = {
    name: logits[:, answer_tokens] - logits[:, answer_tokens].mean(dim=1, keepdim=True)
    for name, logits in cot.logit_lens(model, task, order, n_prompts=N_PROMPTS).items()
}
show(
    draw_maps(
        {name: by_start_year(logits) for name, logits in written.items()},
        columns,
        rows,
        "What heads and MLPs write to the answers' logits",
        "The strongest heads, then MLPs; blue raises an answer, orange lowers it; each panel has its own scale",
        "logits",
        cell=2,
        height_of_cell=9,
        each_own_scale=True,
    )
)

# %% [markdown]
# The same as a number: how much each component adds to the mean logit of the right answers minus that of the wrong
# ones.

# %%
right = torch.tensor(answers)[None, :] > start_years[:, None]
share = {}
for name, logits in written.items():
    difference = (logits * right).sum(dim=1) / right.sum(dim=1) - (logits * ~right).sum(dim=1) / (~right).sum(dim=1)
    share[name] = {
        "right minus wrong (logits)": float(difference.mean()),
        "prompts helped": float((difference > 0).float().mean()),
    }
pd.DataFrame(share).T

# %% [markdown]
# **The toy model**'s two strongest heads write the finished band, low years lowered, the years after the start
# raised. The strongest looks at YY and at nothing else, so what it writes was worked out at YY (the circuit below
# shows that its values come from the MLPs there): the model compares first and moves the result afterwards. In GPT-2
# it is the other way round. The last MLP adds GPT-2's version, in coarse steps: the upper end of the century, the
# lower end, little in between.
#
# ## The circuit
#
# **EAP-IG** (Hanna et al. 2024, [arXiv 2403.17806](https://arxiv.org/abs/2403.17806)) scores *every* edge with a
# handful of gradients, and a search finds the smallest circuit that is **faithful**: with all other edges on the
# corrupted run it keeps 80% of the difference between clean and corrupted prompts, on prompts that the scores have
# not seen.

# %%
circuit = cot.find_circuit(model, task, n_prompts=N_PROMPTS, ig_steps=12)
circuit.tables["baselines"].T.rename(columns={0: "greater-than circuit"})

# %%
show_circuit(show, circuit, "Greater-than")

# %%
if len(circuit.curve):
    show(draw_curves(circuit.curve.assign(model=model.name, task="greater_than", step=model.step), model.name, 1))

# %% [markdown]
# **Look for** the widest edges: from the embedding of YY through the lower MLPs into *values* (v) of the heads above,
# and from there to the logits. Edges into queries and keys would say that *where* a head looks depends on YY.
#
# **The toy model** needs about a ninth of its edges and most of its heads: its greater-than is spread out, where its
# IOI ([ioi_circuit](ioi_circuit.ipynb)) hangs on one head. A steep curve means that a small core does the job; this
# one rises slowly.
#
# The heads of the circuit, side by side with what they do:

# %%
table = head_table(heads_of(circuit), {"to the logits": direct, "with MLPs": through_mlps, "END to YY": attention[0]})
table.sort_values("with MLPs", ignore_index=True).head(10)

# %% [markdown]
# ## The same at every checkpoint
#
# `get_greater_than_consistency.py` asks these questions by numbers, so that checkpoints can be compared: which MLPs act
# on the logits and raise the years above YY, which heads these MLPs read and whether they bring YY, and what those
# heads read at YY. A node must pass by its effect *and* by what it does, each by more than it errs. `percent` is the
# share of the circuit's effect that those nodes have, `chance` what random nodes of the same layers have.

# %%
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "get_greater_than_consistency.py", "-c", "configs/greater_than_consistency_toy.yml"]
    chosen = [f"model={MODEL}", f"checkpoints=[{model.step}]", f"n_prompts={N_PROMPTS}", f"results_dir={folder}"]
    subprocess.run([*command, *chosen], check=True, capture_output=True)
    levels = cot.results(folder, "greater_than_consistency", model.name)
    nodes = cot.results(folder, "greater_than_consistency_nodes", model.name)
levels.set_index("level")[["percent", "percent_low", "percent_high", "chance", "n_nodes", "n_measured", "reason"]]

# %%
scored = ["level", "node", "effect", "above_diagonal", "attention_yy", "year_order", "q_value"]
nodes[nodes["passes"].astype(bool)].sort_values(["level", "effect"])[scored].reset_index(drop=True)

# %% [markdown]
# **The toy model** compares mostly in its heads, so its two year MLPs have no more of the circuit's effect than random
# nodes. Behind them stands GPT-2's algorithm in small: three heads look at YY and bring the year, in order of the
# years, and the values that they bring come from MLP 0.
#
# ## What to take away
#
# - The map of answers by start year says *whether* a model compares; direct effects say *who* writes the comparison;
#   the maps of what is written say *where* it is made. The three together are the claim, not the circuit's drawing
#   alone.
# - The toy model mostly compares at the year and then moves the result. A smaller part it does like GPT-2: it moves
#   the year, then compares in the MLPs.
# - Now set `MODEL = "pythia-160m"` and see which of the two it does. Over all checkpoints at once:
#   `get_greater_than_consistency.py`, and `get_circuits_over_time.py`, read in
#   [reading_a_sweep](reading_a_sweep.ipynb).
