"""Where a model runs."""

from __future__ import annotations

import pytest
import torch

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.models.checkpoint import resolve_device


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
