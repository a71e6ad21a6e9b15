"""What heads attend to and which tokens they move, as circuits' runs stored it, and what else is known of a head."""

from typing import NamedTuple

from circuits_over_time.utils.results.checked import Damaged
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.store import ResultsFolder

from .roles import role_look, stored_roles
from .tables import Results


class HeadsSeen(NamedTuple):
    """The heads of one model, task and checkpoint on a prompt.

    Attributes:
        tokens: of the prompt, or the last of them; `left_out` came before.
        patterns: head (`a3.h1`) -> attention of every token to those up to it. The head with the strongest effect on a
            token comes first.
        moved: head -> the tokens that it raises, then those it lowers, the strongest first, each with the effect.
    """

    tokens: list[str]
    left_out: int
    patterns: dict[str, list[list[float]]]
    moved: dict[str, list[tuple[str, float]]]

    @property
    def prompt(self) -> str:
        """Which part of the prompt is shown, if not all."""
        shown, whole = len(self.tokens), len(self.tokens) + self.left_out
        return f"the last {shown} of {whole} tokens of a prompt" if self.left_out else "a prompt"


def heads_seen(results: Results, model: str, task: str) -> dict[int, HeadsSeen]:
    """By step what was kept of heads; damaged steps are left out, and steps without a head too."""
    found = results.store.sound(results.store.folder("attention", model, task), _read)
    return {step: seen for step, seen in found.items() if seen.patterns}


def _read(folder: ResultsFolder, step: int) -> HeadsSeen:
    table, stored = folder.read_table(step), folder.read_json(step)
    names = "a" + table["layer"].astype(str) + ".h" + table["head"].astype(str)
    texts = table["token_text"].astype(str)
    effects = table["effect"].astype(float).groupby(names)
    moved = {str(name): list(zip(texts[of_head.index], of_head, strict=True)) for name, of_head in effects}
    try:
        tokens = list(map(str, stored["tokens"]))
        strongest = sorted(moved, key=lambda name: -max(abs(effect) for _, effect in moved[name]))
        patterns = {name: stored["heads"][name] for name in strongest}
        whole = all(list(map(len, rows)) == list(range(1, len(tokens) + 1)) for rows in patterns.values())
        if not whole or len(stored["heads"]) != len(patterns):
            raise ValueError
        return HeadsSeen(tokens, int(stored["left_out"]), patterns, moved)
    except (KeyError, TypeError, ValueError):
        way_out = f"to measure it again, run: {folder.how_to_make(overwrite=True)}"
        raise Damaged(
            folder.file(step, ".json"), "it does not hold the attention of the table's heads", way_out
        ) from None


def token_label(text: str) -> str:
    """A token as a label: spaces around it are left out, unless there is nothing else."""
    return text.strip() or "␣" * len(text)


def in_words(tokens: list[tuple[str, float]]) -> str:
    """Tokens with the effect on their logits."""
    return ", ".join(f"{token_label(text)}\xa0{effect:+.2g}" for text, effect in tokens)


def roles_of(results: Results, model: str) -> dict[str, str]:
    """Head -> the roles of IOI that it holds, and when, in words."""
    times: dict[str, dict[str, list[int]]] = {}
    for step, heads in stored_roles(results.store, model).items():
        for head, roles in heads.items():
            for role in roles:
                times.setdefault(head, {}).setdefault(role, []).append(step)
    return {
        head: "; ".join(f"{role_look(role)[0]} at {_when(steps)}" for role, steps in roles.items())
        for head, roles in times.items()
    }


def matches_of(results: Results, model: str) -> dict[str, str]:
    """Head -> its matches in other models that count, in words; none where no heads were matched."""
    if not ComparisonFolder(results.store.root).has("matches"):
        return {}
    found: dict[str, dict[str, list[str]]] = {}
    for (other, signature), heads in ComparisonFolder(results.store.root).matches_of(model).items():
        for (other_layer, other_head), (layer, head) in heads.items():
            names = found.setdefault(f"a{layer}.h{head}", {})
            names.setdefault(f"a{other_layer}.h{other_head} of {other}", []).append(signature)
    return {
        head: "; ".join(f"{name} (by {' and '.join(signatures)})" for name, signatures in names.items())
        for head, names in found.items()
    }


def _when(steps: list[int]) -> str:
    return f"step {steps[0]:,}" + (f" to {steps[-1]:,} ({len(steps)} checkpoints)" if len(steps) > 1 else "")
