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
# # The IOI circuit of one model, step by step
#
# "When Mary and John went to the store, John gave a drink to" → " Mary". To finish the sentence with the **indirect
# object** (IO, *Mary*) and not with the **subject** (S, *John*), a model has to notice which name comes twice.
# Wang et al. 2022 ([arXiv 2211.00593](https://arxiv.org/abs/2211.00593)) found how GPT-2 small does it:
#
# 1. **duplicate-token** and **induction heads**, at the second *John* (S2), notice that the name has come before;
# 2. **S-inhibition heads** carry that to the end of the sentence (END) and keep the next heads from looking at *John*;
# 3. **name movers** look at the name that is left and copy it; **negative name movers** do the opposite.
#
# Tigges et al. 2024 ([arXiv 2407.10827](https://arxiv.org/abs/2407.10827)) asked whether other models, and earlier
# checkpoints of the same model, do the same. This notebook asks that about one checkpoint: what the model says, where
# its heads look, which heads write the answer, who tells those heads where to look, and what the whole circuit is.
#
# By default it runs on the small family that `make toy` trains in minutes (4 layers of 4 heads, a world of a few
# sentence patterns). Every step says what to look for in any model, and then what **the toy model** shows. It learns
# the task perfectly. Whether it learns the *algorithm* is another question, and the answer is worth the read.

# %%
import re

import pandas as pd
import torch

import circuits_over_time as cot
from circuits_over_time.notebooks.drawing import draw_attention, draw_head_maps, draw_scatter, top_heads
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
# Each prompt comes with a corrupted partner of the same length, so that activations can be exchanged position by
# position. We use both corruptions of the literature: `swap` repeats the other name, so that the right answer flips;
# `abc` names three different people, so that there is no right answer.

# %%
ioi = cot.task("ioi")
swap = cot.prompts(model, ioi, n_prompts=N_PROMPTS)
abc = cot.prompts(model, ioi, n_prompts=N_PROMPTS, ioi_corruption="abc")
clean = [text for text, _ in swap.texts]  # the same for both
names = torch.stack([swap.positions[name] for name in ("io", "s1", "s2")], dim=1)  # [prompt, 3]

pd.DataFrame(
    {
        "clean": clean,
        "swap ends with": [corrupted.split()[-5:] for _, corrupted in swap.texts],
        "abc": [corrupted for _, corrupted in abc.texts],
        "answer": swap.meta["io"],
    }
).assign(**{"swap ends with": lambda table: "... " + table["swap ends with"].str.join(" ")}).head(4)

# %% [markdown]
# ## Can the model do it?
#
# The number to watch is the **logit difference**, logit(IO) − logit(S): above 0 the model prefers the right name. On
# `swap` prompts it should be about as far below 0. `accuracy` asks which of the two names wins, `rank_0_rate` whether
# the right one beats every token there is.

# %%
performance = cot.performance(model, ioi, n_prompts=N_PROMPTS)
performance.pivot(index="metric", columns="run", values=["value", "se"]).loc[list(ioi.metrics)]

# %% [markdown]
# **The toy model** does it without an error. A circuit of a model that fails at the task explains nothing, so if your
# logit difference is near 0 (try an early `STEP`), stop here.
#
# ## Where do heads look from the end of the prompt?
#
# The answer is read off at END, the last token. A head brings a name there by attending to it. **Look for** heads
# that look at IO and not at S (name movers as in GPT-2), heads that look at S2 (S-inhibition heads do), and heads
# that cannot tell IO from S1.


# %%
def looks_at_names(texts):
    """Attention from END to the places of IO, S1 and S2: [name, layer, head, prompt]."""
    places = zip(texts, names.cpu(), strict=True)
    return torch.stack([cot.attention(model, text).pattern[:, :, -1, at] for text, at in places]).permute(3, 1, 2, 0)


looks = looks_at_names(clean)
attention = looks.mean(dim=-1)
show(
    draw_head_maps(
        dict(zip(("END to IO", "END to S1", "END to S2"), attention, strict=True)),
        "Attention from the prompt's end to the names",
        f"{where}; mean over {len(swap)} prompts",
        "attention",
        signed=False,
        darkest=1.0,
    )
)

# %% [markdown]
# **The toy model**: all heads of layer 2 split their attention evenly between IO and S1. They gather the two names of
# the first clause and have no preference. One head of the last layer looks at S2 and at nothing else. No head prefers
# IO. This is not what GPT-2's name movers do.
#
# ## Which heads write the answer? Direct effects
#
# Looking is not writing. For each head, keep the whole clean run and change one thing: the *logits* read what that
# head writes on the corrupted prompt, and nothing between the head and the logits is touched. The change of the logit
# difference is the head's **direct effect** (`cot.path_effects`). In this repository that, like every intervention, is
# an *edge mask*: it says which edges of the graph carry the corrupted run, while all others carry the clean one.
#
# **Look for** dark orange: without that head's message the logit difference falls. Blue heads push against the
# answer.

# %%
direct = map_of(cot.path_effects(model, ioi, n_prompts=N_PROMPTS), model)
of_abc = map_of(cot.path_effects(model, ioi, n_prompts=N_PROMPTS, ioi_corruption="abc"), model)
show(
    draw_head_maps(
        {"swap: the other answer": direct, "abc: no answer": of_abc},
        "Direct effect of each head on the logit difference",
        "Path patching head → logits; orange: the answer is lost",
        "change in logits",
    )
)

# %% [markdown]
# For orientation, the mean logit difference on clean prompts, and the heads with the largest direct effects:

# %%
clean_mean = float(performance.query("run == 'clean' and metric == 'logit_diff'")["value"].iloc[0])
writers = top_heads(direct, 6)
attends = dict(zip(("attends to IO", "attends to S1", "attends to S2"), attention, strict=True))
head_table(writers, {"direct effect": direct, "of clean": direct / clean_mean} | attends)

# %% [markdown]
# **The toy model**: one head is the whole story. The head that looks at S2 carries more than twice the logit
# difference on `swap` prompts: exchange its message, and nothing else in the model, and the model gives the *other*
# name with the same conviction. With `abc` it carries about all of it. The layer-2 heads that look at both names
# hardly matter *for the difference*, because they do the same for both names.
#
# ## What do they write? Copying and negative copying
#
# A head that attends to a name can raise that name's logit (copying: name movers) or lower it (negative copying). The
# **copy score** asks this of the weights alone: send a name through the head's value and output matrices and see
# whether the name is among the 5 most promoted tokens. The negative copy score takes minus the head's output.

# %%
copying = {kind: map_of(cot.head_scores(model, kind, n_prompts=N_PROMPTS), model) for kind in ("copy", "negative_copy")}
show(
    draw_head_maps(
        {"copy score": copying["copy"], "negative copy score": copying["negative_copy"]},
        "What heads do to a name that they attend to",
        "How often the name is among the 5 tokens that the head promotes (or, negative: demotes) most",
        "% of names",
        signed=False,
        darkest=100.0,
    )
)

# %% [markdown]
# The same question asked of real prompts, as in figure 3 of Wang et al.: for the head with the largest direct effect,
# how much it attends to each name (one point a prompt and name) against what it writes at END in the direction of
# that name's logit. **Look for** IO points in the upper right (a name mover), or points in the lower right: the more
# the head looks at a name, the less likely it makes it.

# %%
layer, head = writers[0]
to_io, to_s1, to_s2 = looks[:, layer, head]
(written,) = cot.logit_lens(model, ioi, f"a{layer}.h{head}", n_prompts=N_PROMPTS).values()
to_logit = {
    name: written.gather(1, tokens[:, :1].cpu())[:, 0]
    for name, tokens in (("IO", swap.answers.right), ("S", swap.answers.wrong))
}
show(
    draw_scatter(
        {"IO": (to_io, to_logit["IO"]), "S (at S1 or S2)": (to_s1 + to_s2, to_logit["S"])},
        f"What a{layer}.h{head} writes about the names it looks at",
        "One point a prompt and name",
        "attention from END to the name (probability)",
        "written to the name's logit (logits)",
    )
)

# %% [markdown]
# And its attention on one whole prompt, next to that of the head that looks at IO most. The last row is END.

# %%
tokens, pattern = cot.attention(model, clean[0])
looking = divmod(int(attention[0].argmax()), model.weights.n_heads)
drawn = dict.fromkeys(((layer, head), looking))
show(
    draw_attention(
        {f"a{at}.h{of}": pattern[at, of] for at, of in drawn},
        tokens,
        "Attention on one prompt",
        f"The decisive head and the head that looks at IO most; the answer is {swap.meta['io'][0]}",
    )
)

# %% [markdown]
# **The toy model**: its layer-2 heads are perfect copiers, and its decisive head is a perfect *negative* copier: it
# looks at S2 and pushes that name down by several logits. So the answer comes about by **elimination**: layer 2 puts
# both names on the list, the last layer crosses one out.
#
# ## Who tells these heads where to look?
#
# In GPT-2 the name movers' queries are steered by S-inhibition heads. To find such heads, patch longer paths: a
# head's corrupted message goes only into the **queries** (or keys, or values) of the heads above, and everything after
# these is recomputed. **Look for** orange in the first panel: S-inhibition heads. Orange under "values" means that the
# name itself comes through a head.

# %%
receivers = [f"a{layer}.h{head}" for layer, head in writers]
steering = {}
for letter, word in (("q", "queries"), ("k", "keys"), ("v", "values")):
    inputs = [f"{receiver}<{letter}>" for receiver in receivers]
    steering[f"into their {word}"] = map_of(cot.path_effects(model, ioi, None, inputs, n_prompts=N_PROMPTS), model)
show(
    draw_head_maps(
        steering,
        f"Effect of each head through {', '.join(receivers)}",
        "Path patching head → query, key or value → logits (swap)",
        "change in logits",
    )
)

# %% [markdown]
# **The toy model**: nothing steers the queries. The largest numbers are a few per cent of the direct effect, in the
# values. No S-inhibition, and indeed none is needed, as the next experiment shows.
#
# ## Does it notice the repetition?
#
# What makes the decisive heads look at S2: that the name is *repeated*, or merely that it is the *last* name? Three
# kinds of prompts tell these apart. In `abc` prompts the name at the place of S2 is new. In two variants after Wang et
# al. (section 3.2) the names of the first clause change places, or another name replaces S in both its places. **Look
# for** attention that collapses on `abc`: the head depends on the repetition. If it stays, the head only knows where
# names are.


# %%
def renamed(text, names, count=0):
    """The text with names in place of others; with a count, at the first places alone."""
    return re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], text, count=count)


everyone = {*swap.meta["io"], *swap.meta["s"]}
people = list(zip(clean, swap.meta["io"], swap.meta["s"], strict=True))
swapped = [renamed(text, {io: s, s: io}, count=2) for text, io, s in people]
replaced = [renamed(text, {s: min(everyone - {io, s})}) for text, io, s in people]

kinds = {
    "clean": clean,
    "abc: no name repeated": [text for _, text in abc.texts],
    "names of the first clause in the opposite order": swapped,
    "another S": replaced,
}
rows = []
for kind, texts in kinds.items():
    to_s2 = looks_at_names(texts)[2].mean(dim=-1)  # [layer, head]
    rows.append(
        {"prompts": kind} | {f"a{layer}.h{head} to S2's place": float(to_s2[layer, head]) for layer, head in writers}
    )
pd.DataFrame(rows).set_index("prompts")

# %% [markdown]
# **The toy model** looks at the last name whether or not it has come before. It has found a shortcut that its world
# rewards: the last name mentioned is never the answer. All its accuracy on IOI comes from that, and a benchmark of IOI
# prompts alone could not have told it apart from GPT-2's algorithm. Its answer to an `abc` prompt gives the shortcut
# away: it should prefer neither of the first two names, and avoid the third.

# %%
probabilities = cot.logits(model, [text for _, text in abc.texts]).softmax(dim=-1)
probabilities = probabilities.gather(1, abc.corrupted.gather(1, names).cpu()).mean(dim=0)
pd.DataFrame(
    {
        "name in an abc prompt": ["first place of IO", "place of S1", "place of S2 (the last name)"],
        "mean probability": probabilities.tolist(),
    }
)

# %% [markdown]
# ## S-inhibition, tested
#
# The definition of Tigges et al. goes further than a path's effect. Let the decisive heads' queries read a candidate as
# it is for the same prompt with the first clause's names in the **opposite order**, where S stands elsewhere and the
# answer is the same. If the head carries the signal "S is *there*", the logit difference falls. That is path patching
# with a task of our own: the corrupted prompts are those in the opposite order. Here is the test for the heads with the
# largest effect on the decisive heads' queries. (`get_ioi_consistency.py` also asks whether the heads above then look
# less at IO and more at S1.)

# %%
candidates = [f"a{layer}.h{head}" for layer, head in top_heads(steering["into their queries"], 4, share=0.0)]
opposite = cot.task(
    clean=clean,
    corrupted=swapped,
    answers=[f" {name}" for name in swap.meta["io"]],
    wrong_answers=[f" {name}" for name in swap.meta["s"]],
)
queries = [f"{receiver}<q>" for receiver in receivers]
pd.DataFrame(
    {
        f"{what} read by their queries": cot.path_effects(
            model, task, candidates, queries, n_prompts=N_PROMPTS
        ).set_index("sender")["effect"]
        for what, task in {"the swap prompt": ioi, "the opposite order": opposite}.items()
    }
)

# %% [markdown]
# **The toy model** has no head that passes: whatever is exchanged, nothing moves.
#
# The heads that would feed S-inhibition are duplicate-token and induction heads. You can recognise them without any
# IOI prompt, on random blocks of tokens that are repeated (Olsson et al. 2022, [arXiv
# 2209.11895](https://arxiv.org/abs/2209.11895)):

# %%
scores = {
    kind: map_of(cot.head_scores(model, kind, n_sequences=50, seq_len=18), model)
    for kind in ("induction", "duplicate_token", "previous_token")
}
show(
    draw_head_maps(
        {kind.replace("_", " "): values for kind, values in scores.items()},
        "Heads that recognise repetition",
        "Mean attention on random tokens that stand twice in a row",
        "attention",
        signed=False,
        darkest=1.0,
    )
)

# %% [markdown]
# **The toy model** does have strong induction heads (layer 2 again, above previous-token heads in layer 1), and no
# duplicate-token head. The machinery that could detect the repetition is there, but IOI does not use it.
#
# ## The circuit
#
# So far we chose where to look. **EAP-IG** (Hanna et al. 2024, [arXiv 2403.17806](https://arxiv.org/abs/2403.17806))
# scores *every* edge with a handful of gradients, and a search finds the smallest circuit that is **faithful**: with
# all other edges on the corrupted run, it keeps 80% of the logit difference, on prompts that the scores have not
# seen.

# %%
circuit = cot.find_circuit(model, ioi, n_prompts=N_PROMPTS, ig_steps=12)
circuit.tables["baselines"].T.rename(columns={0: "IOI circuit"})

# %%
show_circuit(show, circuit, "IOI")

# %% [markdown]
# Blue edges raise the logit difference, orange ones lower it; q, k, v say which of a head's inputs an edge enters.
# **Look for** the heads from above, and for what joins them. How much a circuit's size matters shows in the curve of
# faithfulness over all sizes tried (the ring marks the circuit drawn):

# %%
if len(circuit.curve):
    show(draw_curves(circuit.curve.assign(model=model.name, task="ioi", step=model.step), model.name, 1))

# %% [markdown]
# **The toy model**'s circuit is a handful of edges: the names' embeddings go through the first MLP into the *values*
# of the decisive head, and its output to the logits. No edge enters its queries or keys: where it looks does not
# differ between the clean and the corrupted prompt, only what it finds there does. It is not a mistake that the layer-2
# heads are absent: they put *both* names on the list and would do the same for the corrupted prompt, and a circuit
# found by contrast holds only what differs. Circuits answer the question that the corrupted prompts ask.
#
# ## What to take away
#
# The heads of the circuit, side by side with what they do:

# %%
head_table(
    heads_of(circuit),
    {
        "direct effect": direct,
        "copy %": copying["copy"],
        "negative copy %": copying["negative_copy"],
        "induction": scores["induction"],
        "END to IO": attention[0],
        "END to S2": attention[2],
    },
)

# %% [markdown]
# - A model can be perfect on IOI prompts without the IOI algorithm. The toy model eliminates the last name.
# - One corruption is not enough. `swap` and `abc` agree on the decisive head, but only the attention on `abc` prompts
#   shows that nothing is detected.
# - Now set `MODEL = "pythia-160m"`: the published answer is that from this size on most of each level's effect lies
#   in heads of the known kinds. `get_ioi_consistency.py` measures exactly that at every checkpoint, and
#   [reading_a_sweep](reading_a_sweep.ipynb) shows how to read the results.
