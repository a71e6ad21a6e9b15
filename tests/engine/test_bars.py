"""Bars within a measurement: on a terminal, for what takes long, and gone when it is over."""

from __future__ import annotations

import io
import sys
import time

import pytest

from circuits_over_time.edge_attribution_patching.model import pairs as bars
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from tests.support.random_models import random_model, random_pairs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, terminal: io.StringIO, delay: float) -> str:
    monkeypatch.setattr(bars, "BAR_DELAY", delay)
    monkeypatch.setattr(sys, "stderr", terminal)
    weights = read_weights(random_model())

    def slow(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        time.sleep(0.15)
        return logits[:, 3]

    attribute(weights, TokenPairs(*random_pairs(2)), slow, steps=3, memory_budget_gb=1e-9)
    return terminal.getvalue()


def test_a_long_measurement_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal(), delay=1e-9)
    assert "integrated gradients" in text
    assert "/3" in text
    assert text.endswith("\r"), "the bar is wiped out when it is over"


def test_a_short_one_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), delay=600) == ""


def test_a_log_file_gets_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), delay=1e-9) == ""
