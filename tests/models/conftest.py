"""A hub on this machine that serves small checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from circuits_over_time.utils.models.family import HubFamily, resolve_family
from tests.support.hub_server import Files, HubServer, read_folder
from tests.support.loading import instant_waits, point_at
from tests.support.tiny_models import save_checkpoint


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """Steps 0, 1000, 2000, 3000; 2000 and 3000 hold the same weights, and main those of another model."""
    folder = tmp_path_factory.mktemp("branches")
    seeds = {"main": 9, "step0": 0, "step1000": 1, "step2000": 2, "step3000": 2}
    for name, seed in seeds.items():
        save_checkpoint(folder / name, seed)
    return {name: read_folder(folder / name) for name in seeds}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait for the hub, in seconds, ours and its client's; none of them takes any time."""
    return instant_waits(monkeypatch)


@pytest.fixture
def served(branches: dict[str, Files], monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[HubServer]:
    repositories = {"EleutherAI/pythia-70m": dict(branches), "lab/run": dict(branches), "lab/plain": {"main": {}}}
    with HubServer(repositories) as hub:
        point_at(hub.endpoint, monkeypatch)
        yield hub


@pytest.fixture
def pythia(served: HubServer, tmp_path: Path) -> HubFamily:
    family = resolve_family("pythia-70m", tmp_path)
    assert isinstance(family, HubFamily)
    return family
