"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import uuid
from pathlib import Path

# Tests are small and run side by side: one thread each, in the scripts that they start too.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from circuits_over_time.utils.sweep import times
from tests.support.paths import TOY
from tests.support.tiny_models import save_family
from tests.support.word_family import save_word_family

torch.set_num_threads(1)
# No test outlives a power cut, so none waits for the disk. Those about fsync replace it themselves.
os.fsync = lambda handle: None
# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with them at the end; the real model only where it is asked for."""
    if "real" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="measures a real language model; run: make test-real"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Garbage is collected rarely, and what the imports left is passed over: it took a quarter of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True)
def no_times_of_earlier_runs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test neither sees nor changes how long measurements took on this machine."""
    folder = tmp_path_factory.getbasetemp() / "times" / uuid.uuid4().hex
    monkeypatch.setattr(times, "folder", lambda: folder)


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local family `tiny` of four steps, 64 tokens each. Do not change it."""
    return save_family(tmp_path_factory.mktemp("families") / "tiny", {0: 0, 10: 1, 20: 2, 30: 3})


@pytest.fixture(scope="session")
def twin_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local family `twins` whose steps 20 and 30 hold the same weights. Do not change it."""
    return save_family(tmp_path_factory.mktemp("families") / "twins", {0: 0, 10: 1, 20: 2, 30: 2})


@pytest.fixture(scope="session")
def word_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local family `words` of the untrained steps 0 and 5, whose tokenizer knows every task. Do not change it."""
    return save_word_family(tmp_path_factory.mktemp("families") / "words", steps=(0, 5))


@pytest.fixture
def toy_family() -> Path:
    """Three steps of the trained toy family, TOY_STEPS, kept in tests/data. Do not change it."""
    return TOY
