"""Where a model runs."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from pydantic import ValidationError

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.model.memory import layers_by_device
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import BaseConfig
from circuits_over_time.utils.heads.learning_keys import LearningConfig
from circuits_over_time.utils.models import checkpoint
from circuits_over_time.utils.models.checkpoint import placement, resolve_device, resolve_devices
from tests.support.paths import TOY
from tests.support.random_models import random_model


def test_auto_is_a_device_of_this_machine() -> None:
    torch.zeros(1, device=resolve_device("auto"))


@pytest.mark.parametrize(
    ("cuda", "mps", "taken"), [(True, True, "cuda"), (False, True, "mps"), (True, False, "cuda"), (False, False, "cpu")]
)
def test_auto_prefers_cuda_then_apples_gpu(cuda: bool, mps: bool, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(taken)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=rf"^device: there is no '{device}' here, only .*cpu"):
        resolve_device(device)


@pytest.mark.parametrize("n_gpus", [0, 1, 3])
def test_device_map_takes_all_gpus_and_says_where_there_is_one(
    n_gpus: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint._say_one.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    alone = resolve_device("auto")
    assert resolve_devices("auto", None) == [alone]
    with caplog.at_level(logging.WARNING):
        assert resolve_devices("auto", "auto") == [alone] if n_gpus < 2 else [f"cuda:{index}" for index in range(3)]
        resolve_devices("auto", "auto")
    assert [record.getMessage() for record in caplog.records] == [
        f"device_map: auto: there is one device here, and the whole model goes to it ({alone})"
    ] * (n_gpus < 2)


@pytest.mark.parametrize("name", ["", "step1350"])
def test_the_library_hands_a_device_map_on(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint._say_one.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cot.load(TOY / name, step=1350, device_map="auto").weights.device == resolve_device("auto")
    assert "device_map: auto: there is one device here" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:1"])
def test_device_map_beside_one_device_is_refused(device: str) -> None:
    with pytest.raises(ValidationError, match=f"device_map: has no effect with device={device}; pass device=cuda"):
        BaseConfig(model="m", device=device, device_map="auto")
    assert BaseConfig(model="m", device="cuda", device_map="auto").device_map == "auto"
    with pytest.raises(ValidationError, match="chains, which run on one device; leave it out"):
        LearningConfig(model="m", device_map="auto")


@pytest.mark.parametrize("rooms", [(10.0, 10.0), (10.0, 5.0), (4.0, 9.0, 7.0), (1.5, 9.0)])
def test_the_device_with_the_least_room_a_layer_has_the_most_there_can_be(rooms: tuple[float, ...]) -> None:
    shape = read_weights(random_model("gpt2", n_layers=7))
    shared = 2 * shape.d_vocab * shape.d_model * 4

    def least(counts: tuple[int, ...]) -> float:
        return min(
            (room - (place == 0)) / count
            for place, (room, count) in enumerate(zip(rooms, counts, strict=True))
            if count
        )

    every = (counts for counts in itertools.product(range(8), repeat=len(rooms)) if sum(counts) == 7 and counts[0])
    found = layers_by_device(shape, 4, [room * shared for room in rooms])
    assert sum(found) == 7
    assert least(tuple(found)) == pytest.approx(max(map(least, every)))


def test_a_layers_tensors_go_by_their_names_whatever_stands_before(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [torch.device("cuda", index) for index in range(2)]
    monkeypatch.setattr(checkpoint, "total_bytes", lambda device: 10**9)
    where = placement(random_model("neox-parallel", n_layers=12).config, torch.float32, devices)
    for prefix in ("", "gpt_neox.", "model.gpt_neox."):
        assert where(f"{prefix}layers.5.mlp.dense_h_to_4h.weight") == devices[0]
        assert where(f"{prefix}layers.10.attention.dense.bias") == devices[1]
    assert {where(name) for name in ("gpt_neox.embed_in.weight", "embed_out.weight", "layers.12.x")} == {devices[0]}
