"""The trained toy family, for every test that needs a model that can do something."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from utils.config import load_config
from utils.errors import UserError
from utils.toy_family import FamilyConfig, train_family

ROOT = Path(__file__).resolve().parents[1]


def toy_family_folder(name: str = "toy") -> Path:
    """The folder of the family of configs/{name}_family.yml, trained first if it is not there (minutes).

    Where model_cache/{name} holds a family of another config, that one stays and model_cache/{name}_of_tests is used.
    """
    attempts = ((name,), (f"{name}_of_tests",), (f"{name}_of_tests", "overwrite=true"))
    for attempt in attempts[:-1]:
        with contextlib.suppress(UserError):
            return _trained(name, *attempt)
    return _trained(name, *attempts[-1])


@pytest.fixture(scope="session")
def toy_family() -> Path:
    """See `toy_family_folder`. Not to be changed."""
    return toy_family_folder()


@pytest.fixture(scope="session")
def toy_ioi_family() -> Path:
    """The family that solves IOI by position; see `toy_family_folder`. Not to be changed."""
    return toy_family_folder("toy_ioi")


def _trained(name: str, folder_name: str, *overrides: str) -> Path:
    folder = (ROOT / "model_cache" / folder_name).as_posix()
    config = ROOT / f"configs/{name}_family.yml"
    return train_family(load_config(FamilyConfig, config, [f"folder={folder}", *overrides]))
