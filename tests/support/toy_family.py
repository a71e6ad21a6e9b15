"""The trained toy family, for every test that needs a model that can do something."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.support.paths import ROOT
from utils.config.keys import load_config
from utils.errors import UserError
from utils.toy.family import FamilyConfig, train_family


def toy_family_folder() -> Path:
    """The folder of the family of configs/toy_family.yml, trained first if it is not there (minutes).

    Where model_cache/toy holds a family of another config, that one stays and model_cache/toy_of_tests is used.
    """
    attempts = (("toy",), ("toy_of_tests",), ("toy_of_tests", "overwrite=true"))
    for attempt in attempts[:-1]:
        with contextlib.suppress(UserError):
            return _trained(*attempt)
    return _trained(*attempts[-1])


def _trained(name: str, *overrides: str) -> Path:
    folder = (ROOT / "model_cache" / name).as_posix()
    return train_family(load_config(FamilyConfig, ROOT / "configs/toy_family.yml", [f"folder={folder}", *overrides]))
