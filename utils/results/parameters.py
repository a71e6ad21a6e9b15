"""How many parameters a model has, as the runs that measured it recorded."""

from utils.errors import UserError
from utils.results.kinds import KINDS
from utils.results.store import Store


def recorded_parameters(store: Store, model: str) -> int | None:
    """Number of parameters that the runs of a model recorded with its checkpoints; None where none did.

    Raises:
        UserError: if they differ.
    """
    counts = set()
    for kind in KINDS:
        for task in [*store.tasks(kind, model), None]:
            folder = store.folder(kind, model, task)
            if folder.steps() and (folder.path / "run.json").is_file():
                counts |= {weights.get("parameters") for weights in folder.read_run().get("checkpoints", {}).values()}
    known = sorted(counts - {None})
    if len(known) > 1:
        raise UserError(f"{store.root}: {model} has {' and '.join(f'{n:,}' for n in known)} parameters; keep one model")
    return known[0] if known else None
