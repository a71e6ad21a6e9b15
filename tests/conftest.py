"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

# Tests are small and run side by side: one thread each, in the scripts that they start too.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from tests.support.tiny_models import save_family
from tests.support.toy_family import toy_family_folder

torch.set_num_threads(1)
# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local family `tiny` of four steps, 64 tokens each; steps 20 and 30 hold the same weights. Not to be changed."""
    return save_family(tmp_path_factory.mktemp("families") / "tiny", {0: 0, 10: 1, 20: 2, 30: 2})


@pytest.fixture(scope="session")
def toy_family() -> Path:
    """The trained toy family, trained first if it is not there (minutes). Not to be changed."""
    return toy_family_folder()
