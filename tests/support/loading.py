"""What tests of loading share: the hub pointed at this machine, and weights compared."""

from __future__ import annotations

import dataclasses
import time
import types
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.hub import download as retries
from circuits_over_time.utils.models.family import Family, resolve_family
from tests.support.tiny_models import tiny_model


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


def instant_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no wait for the hub take time, neither ours nor those of its client; returns the list of waits to come."""
    waits: list[float] = []
    retries._answered.set()  # As in a process that has heard from the hub.
    clock = types.SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
    clock.sleep = waits.append
    monkeypatch.setattr(retries, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    monkeypatch.setattr(_http, "time", clock)
    return waits


def loads_weights_of(family: Family, step: int, seed: int) -> bool:
    """Whether every tensor of a checkpoint, folded ones included, is that of the seed's weights."""
    return same_tensors(family.load(step, device="cpu").weights, read_weights(tiny_model(seed)))


def same_tensors(first: object, second: object) -> bool:
    """Whether two dataclasses of tensors are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(same_tensors(*pair) for pair in zip(first, second, strict=True))
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        return all(same_tensors(getattr(first, name), getattr(second, name)) for name in names)
    return first == second


def error_of(model: str, cache_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolve_family(model, cache_dir)
    return str(caught.value)
