"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import save_family


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local family `tiny` of four steps, 64 tokens each; steps 20 and 30 hold the same weights. Not to be changed."""
    return save_family(tmp_path_factory.mktemp("families") / "tiny", {0: 0, 10: 1, 20: 2, 30: 2})
