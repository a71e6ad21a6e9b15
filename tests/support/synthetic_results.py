"""Made-up results with the shapes that real ones have, written through the store, for the tests of figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from circuits_over_time.utils.config.schedules import tokens_at
from circuits_over_time.utils.results.edges import with_inputs
from circuits_over_time.utils.results.store import Store
from tests.support.stored import write_json, write_table

STEPS = (0, 1, 8, 64, 512, 4000, 32000, 143000)
TASKS = ("ioi", "sva")
MODELS = ("pythia-70m", "pythia-160m", "pythia-1.4b")
LAYERS, HEADS = 4, 6
HEAD = r"^a(\d+)\.h(\d+)"


def write(store: Store, kind: str, model: str, task: str | None, step: int, table: pd.DataFrame, tokens: int) -> None:
    """Write a table of which some columns are left out; they are empty."""
    folder = store.folder(kind, model, task)
    table = with_inputs(table) if "target" in table else table
    write_table(folder, step, table.reindex(columns=list(folder.kind.columns)), tokens)


def write_all(folder: Path, models: tuple[str, ...] = MODELS, tasks: tuple[str, ...] = TASKS) -> Store:
    """Every kind of result for every model, the same on every call."""
    store = Store(folder)
    for seed, model in enumerate(models):
        rng = np.random.default_rng(seed)
        for step in STEPS:
            learnt = 1 / (1 + (1500 * (seed + 1) / max(step, 0.5)) ** 1.5)
            for task in tasks:
                write_circuit(store, model, task, step, learnt, rng)
                write(store, "task_performance", model, task, step, _performance(learnt, rng), tokens_at(step))
            write(store, "components", model, None, step, _components(learnt, rng), tokens_at(step))
            write(store, "successor", model, None, step, _heads(learnt, rng, 3), tokens_at(step))
            write(
                store,
                "cspa",
                model,
                None,
                step,
                _heads(learnt, rng, 7).rename(columns={"value": "score"}),
                tokens_at(step),
            )
            write(store, "ioi_consistency", model, None, step, _consistency(learnt, rng), tokens_at(step))
            write(store, "ioi_consistency_heads", model, None, step, _roles(learnt), tokens_at(step))
            write(store, "greater_than_consistency", model, None, step, _greater_than(learnt), tokens_at(step))
            write(store, "ioi_backup", model, None, step, _backup(learnt, rng), tokens_at(step))
        write_parameters(store, model, 10**6 * (seed + 1))
    return store


def write_parameters(store: Store, model: str, count: int) -> None:
    """The run.json of head scores, as far as it says how many parameters the model has."""
    weights = {"repository": model, "revision": f"step{STEPS[-1]}", "commit": None, "sha256": "0", "parameters": count}
    run = {"analysis": "get_full_model_components_over_time", "checkpoints": {str(STEPS[-1]): weights}}
    (store.folder("components", model).path / "run.json").write_text(json.dumps(run))


def write_circuit(store: Store, model: str, task: str, step: int, learnt: float, rng: np.random.Generator) -> None:
    """Baselines, faithfulness and circuit of a checkpoint; none is selected before anything is learnt."""
    full = 4 * learnt + 0.05 * rng.normal()
    noise = {"full_se": 0.15, "corrupted_se": 0.1}
    areas = {"cpr": 0.9 * learnt, "cmd": 1 - 0.9 * learnt} if learnt > 0.01 else {}
    baselines = {"full": full, "corrupted": -full / 2, "n_prompts": 100, **noise, **areas}
    write(store, "baselines", model, task, step, pd.DataFrame([baselines]), tokens_at(step))
    sizes = np.unique(np.geomspace(1, 250, 24).round().astype(int))
    faithful = np.clip(1.02 - np.exp(-sizes / (40 + 30 * rng.random())), 0, None)
    enough = (faithful >= 0.8) & (learnt > 0.01)
    selected = np.zeros(len(sizes), dtype=bool)
    if enough.any():
        selected[enough.argmax()] = True
    table = pd.DataFrame(
        {
            "size": sizes,
            "n_edges": sizes - sizes // 10,
            "n_nodes": np.minimum(2 + sizes // 5, 28),
            "metric": faithful * full,
            "faithfulness": faithful,
            "faithfulness_raw": faithful * 0.95,
            "selected": selected,
        }
    )
    write(store, "faithfulness", model, task, step, table, tokens_at(step))
    edges = random_circuit(int(table.loc[selected, "size"].iloc[0]) if selected.any() else 0, rng)
    sure = np.random.default_rng(step).random(len(edges))
    edges = edges.assign(score_se=0.1 * edges["score"].abs(), stability=sure, inclusion=sure.round())
    write(store, "graphs", model, task, step, edges, tokens_at(step))
    write_attention(store, model, task, step, edges)
    if not edges.empty:
        write(store, "controls", model, task, step, _controls(step), tokens_at(step))
    write(store, "prompt_groups", model, task, step, _prompts(task, full, not edges.empty), tokens_at(step))
    write(store, "transfer", model, task, step, _transfer(task, step, not edges.empty), tokens_at(step))
    write(store, "swaps", model, task, step, _swaps(step), tokens_at(step))


PROMPT = ["When", " Mary", " and", " John", " went", ",", " John", " gave", " to"]
"""The prompt on which heads are seen."""


def write_attention(store: Store, model: str, task: str, step: int, edges: pd.DataFrame) -> None:
    """The heads of a circuit: head h of layer l attends to the token that is l + h before, or the first there is."""
    heads = {
        tuple(map(int, ends))
        for column in ("source", "target")
        for ends in edges[column].str.extract(HEAD).dropna().to_numpy()
    }
    patterns = {
        f"a{layer}.h{head}": [
            [float(key == max(0, n - layer - head)) for key in range(n + 1)] for n in range(len(PROMPT))
        ]
        for layer, head in sorted(heads)
    }
    tokens = [(7, " Mary", 2.0), (8, " John", 1.0), (9, " and", -1.5), (10, "\\n", -0.5)]
    rows = [
        (layer, head, token, text, effect * (1 + head))
        for layer, head in sorted(heads)
        for token, text, effect in tokens
    ]
    write_json(store.folder("attention", model, task), step, {"tokens": PROMPT, "left_out": 0, "heads": patterns})
    table = pd.DataFrame(rows, columns=["layer", "head", "token", "token_text", "effect"])
    write(store, "attention", model, task, step, table, tokens_at(step))


def _transfer(task: str, step: int, learned: bool) -> pd.DataFrame:
    """Circuits do worse the more checkpoints away they were found, and nothing on other tasks."""
    sources = [(other, task) for other in STEPS if other >= 512] + [(step, other) for other in TASKS if other != task]
    rows = [
        {
            "from_step": other,
            "from_task": name,
            "circuit": "abcdefgh",
            "n_edges": 10,
            "faithfulness": 0.9 - 0.2 * abs(STEPS.index(other) - STEPS.index(step)) if name == task else 0.01,
        }
        for other, name in (sources if learned else [])
    ]
    return pd.DataFrame(rows, columns=["from_step", "from_task", "circuit", "n_edges", "faithfulness"])


def _swaps(step: int) -> pd.DataFrame:
    """A head's swap moves the metric by -0.1 a checkpoint between; random heads by 0.15 at most, so one is usual."""
    rows = []
    for other in STEPS[-4:]:
        apart = abs(STEPS.index(other) - STEPS.index(step))
        row = {"from_step": other, "components": "a1.h2", "own_metric": 1.0}
        rows.append(row | {"control": "swap", "metric": 1 - 0.1 * apart})
        rows += [row | {"control": "random", "number": 0, "metric": 1.15}] if apart else []
    return pd.DataFrame(rows)


def _controls(step: int) -> pd.DataFrame:
    """A circuit against five random ones; at the last checkpoint one of them beats it."""
    rows = [{"control": "circuit", "faithfulness": 0.85}, {"control": "without_circuit", "faithfulness": 0.05}]
    for number in range(5):
        lost = step == STEPS[-1] and number == 4
        rows.append({"control": "random", "number": number, "faithfulness": 0.9 if lost else 0.02 * number})
        rows.append({"control": "without_random", "number": number, "faithfulness": 0.6 + 0.1 * number})
        rows[-2]["beaten"], rows[-1]["beaten"] = not lost, True
    return pd.DataFrame(rows).assign(n_edges=30)


def _prompts(task: str, full: float, learned: bool) -> pd.DataFrame:
    """All prompts; those of IOI also by kind, of which the circuit does better on ABBA."""
    ends = {"_q25": -0.5, "_median": 0.1, "_q75": 0.7}
    row = {f"full{end}": full + shift for end, shift in ends.items()}
    row |= {f"circuit{end}": 0.8 * full + shift for end, shift in ends.items() if learned}
    rows = [{"group": "all", "n_prompts": 100} | row]
    for group, value in {"ABBA": 0.9, "BABA": 0.75}.items():
        interval = {"faithfulness": value, "faithfulness_low": value - 0.05, "faithfulness_high": value + 0.05}
        rows.append({"group": group, "n_prompts": 50} | row | (interval if learned else {}))
    return pd.DataFrame(rows if task == "ioi" else rows[:1])


def random_circuit(n_edges: int, rng: np.random.Generator) -> pd.DataFrame:
    """About `n_edges` edges of a graph of LAYERS layers of HEADS heads in parallel blocks, every node on a path."""
    order = ["input"]
    for layer in range(LAYERS):
        order += [f"a{layer}.h{head}" for head in range(HEADS)] + [f"m{layer}"]
    edges: dict[tuple[str, str], float] = {}
    reached = ["logits"]
    while len(edges) < n_edges:
        target = reached[int(rng.integers(len(reached)))]
        layer = LAYERS if target == "logits" else int(target[1:].split(".")[0])
        below = order[: 1 + layer * (HEADS + 1)]
        source = below[int(rng.integers(len(below)) * rng.random() ** 0.3)]
        suffix = f"<{'qkv'[int(rng.integers(3))]}>" if target.startswith("a") else ""
        edges[(source, target + suffix)] = float(rng.normal() * np.exp(rng.normal() - 2))
        if source not in reached and source != "input":
            reached.append(source)
            edges[("input", source + ("<v>" if source.startswith("a") else ""))] = float(0.1 * rng.normal())
    return pd.DataFrame([(*edge, score) for edge, score in edges.items()], columns=["source", "target", "score"])


def _performance(learnt: float, rng: np.random.Generator) -> pd.DataFrame:
    values = {
        "logit_diff": 4 * learnt,
        "prob_diff": 0.7 * learnt,
        "accuracy": 0.5 + 0.5 * learnt,
        "rank_0_rate": learnt,
    }
    rows = []
    for metric, value in values.items():
        rows.append({"run": "clean", "metric": metric, "value": value, "se": 0.05, "n": 100})
        rows.append(
            {"run": "corrupted", "metric": metric, "value": value / 4 + 0.02 * rng.normal(), "se": 0.05, "n": 100}
        )
    return pd.DataFrame(rows)


def _heads(learnt: float, rng: np.random.Generator, best: int) -> pd.DataFrame:
    layers, heads = (index.ravel() for index in np.indices((LAYERS, HEADS)))
    strength = np.where(np.arange(layers.size) % best == best - 1, 1.0, 0.05)
    value = np.clip(strength * learnt * (0.5 + 0.5 * (layers + 1) / LAYERS) + 0.02 * rng.random(layers.size), 0, 1)
    return pd.DataFrame({"layer": layers, "head": heads, "value": value})


def _components(learnt: float, rng: np.random.Generator) -> pd.DataFrame:
    kinds = {"induction": 5, "previous_token": 6, "duplicate_token": 8, "copy": 9}
    return pd.concat(
        [_heads(learnt, rng, best).assign(score=kind, se=0.02) for kind, best in kinds.items()], ignore_index=True
    )


def _consistency(learnt: float, rng: np.random.Generator) -> pd.DataFrame:
    levels = {"name_movers": 85, "s_inhibition": 65, "induction": 55}
    rows = []
    for level, top in levels.items():
        percent = top * learnt + 2 * rng.random()
        row = {"level": level, "definitions": "study", "percent": percent, "n_heads": int(5 * learnt)}
        row |= {"percent_low": percent - 3, "percent_high": percent + 3}
        rows.append(row | {"n_heads_in_circuit": int(4 * learnt), "circuit_effect": learnt})
    return pd.DataFrame(rows)


def _greater_than(learnt: float) -> pd.DataFrame:
    rows = [{"level": level, "percent": 80 * learnt, "chance": 20 * learnt} for level in ("mlps", "heads", "inputs")]
    ends = {"percent_low": 70 * learnt, "percent_high": 90 * learnt, "chance_low": 0.0, "chance_high": 30 * learnt}
    return pd.DataFrame(rows).assign(**ends, n_nodes=2, n_nodes_in_circuit=2, circuit_effect=learnt)


def _roles(learnt: float) -> pd.DataFrame:
    """One head takes a role over from another; before anything is learnt nobody was measured."""
    rows = []
    for level, role, layer, before, after in (
        ("name_movers", "name_mover", 3, 1, 4),
        ("name_movers", "copy_suppression", 3, 2, 2),
        ("s_inhibition", "s_inhibition", 2, 0, 0),
        ("induction", "induction", 1, 3, 5),
    ):
        for head in range(HEADS) if learnt > 0.01 else ():
            holds = head == (after if learnt > 0.5 else before)
            row = {"level": level, "definitions": "study", "layer": layer, "head": head, "effect": -learnt * holds}
            rows.append(row | {"role": role if holds else "", "in_circuit": True, "passes": holds})
    columns = ["level", "definitions", "layer", "head", "effect", "role", "in_circuit", "passes"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates()  # Of heads without a role, one row each.


def _backup(learnt: float, rng: np.random.Generator) -> pd.DataFrame:
    shares = {"all": 40, "name_movers": np.nan, "heads": 25, "mlps": 10, "final_norm": 5}
    rows = []
    for part, top in shares.items():
        share = top * learnt + rng.random()
        row = {"part": part, "change": learnt, "came_back": share, "n_ablated": 2, "ablation": "mean"}
        rows.append(row | {"came_back_low": share - 4, "came_back_high": share + 4})
    return pd.DataFrame(rows)
