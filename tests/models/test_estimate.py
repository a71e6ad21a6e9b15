"""What a sweep will need, against sizes that can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuits_over_time.utils.base.errors import CheckpointUnusable, HubUnreachable
from circuits_over_time.utils.models.family import HubFamily, resolve_family
from circuits_over_time.utils.models.known_families import known_size
from circuits_over_time.utils.models.revisions import Named
from circuits_over_time.utils.sweep.estimate import Estimate, estimate, format_estimate, size
from tests.support.hub_server import HubServer


@pytest.fixture
def sized(served: HubServer, tmp_path: Path) -> HubFamily:
    """Weights of 100, 200, 400 and 300 bytes, in this order."""
    for step, count in ((0, 100), (1000, 200), (2000, 400), (3000, 300)):
        files = served.repositories["EleutherAI/pythia-70m"][f"step{step}"]
        served.repositories["EleutherAI/pythia-70m"][f"step{step}"] = files | {"model.safetensors": bytes(count)}
    family = resolve_family("pythia-70m", tmp_path)
    assert isinstance(family, HubFamily)
    return family


@pytest.mark.parametrize(
    ("keep", "prefetch", "disk"),
    [("all", True, 1000), ("none", False, 400), ("none", True, 700), (1, True, 900), (2, True, 1000), (9, True, 1000)],
)
def test_download_and_disk_are_counted_from_metadata(
    keep: str | int, prefetch: bool, disk: int, sized: HubFamily, served: HubServer
) -> None:
    found = estimate(sized, sized.steps, "float32", keep, prefetch)  # type: ignore[arg-type]
    assert (found.download, found.disk, found.unknown) == (1000, disk, ())
    assert served.downloads("model.safetensors") == []


@pytest.mark.parametrize(("dtype", "memory"), [("float32", 400 + 400), ("bfloat16", 2 * 200 + 400)])
def test_memory_is_the_largest_file_and_its_model_twice_if_converted(dtype: str, memory: int, sized: HubFamily) -> None:
    assert estimate(sized, sized.steps, dtype, "all", True).memory == memory


def test_what_is_on_disk_is_not_downloaded_again(sized: HubFamily) -> None:
    sized.fetch(2000)
    found = estimate(sized, sized.steps, "float32", "none", False)
    assert (found.download, found.disk) == (600, 400 + 300)


def test_steps_without_sizes_are_told(sized: HubFamily, served: HubServer) -> None:
    served.missing.add("step2000")
    found = estimate(sized, sized.steps, "float32", "all", False)
    assert (found.download, found.unknown) == (600, (2000,))
    assert format_estimate(found).endswith("(weights alone), and 1 checkpoint of unknown size")


def test_without_the_hub_sizes_are_those_of_the_shape(sized: HubFamily, served: HubServer) -> None:
    served.status = 503
    found = estimate(sized, sized.steps, "float32", "all", True)
    assert (found.download, found.unknown, found.from_shape) == (4 * known_size("pythia-70m")[1], (), True)


def test_a_local_family_needs_memory_alone(tiny_family: Path, tmp_path: Path) -> None:
    weights = (tiny_family / "step10" / "model.safetensors").stat().st_size
    found = estimate(resolve_family(str(tiny_family), tmp_path), [0, 10], "float32", "all", True)
    assert found == Estimate(0, 0, 2 * weights, ())


def test_sizes_are_shown_as_the_hub_shows_them() -> None:
    assert [size(count) for count in (512, 1600, 24e9, 1.5e12)] == ["512 B", "1.6 kB", "24.0 GB", "1.5 TB"]


@pytest.mark.parametrize(
    ("name", "parameters", "size"),
    # Parameters as Biderman et al. 2023 give them.
    [
        ("pythia-70m", 70_426_624, 2 * 70_426_624 + 6 * 2048 * 2048),
        ("pythia-1.4b-deduped", 1_414_647_808, 2 * 1_414_647_808 + 24 * 2048 * 2048),
        ("pythia-12b", 11_846_072_320, 2 * 11_846_072_320 + 36 * 2048 * 2048),
    ],
)
def test_sizes_of_known_models_follow_from_their_shapes(name: str, parameters: int, size: int) -> None:
    assert known_size(name) == (parameters, size)
    assert known_size("OLMo-1B-hf") is None
    assert known_size("pythia-70m-seed3") == known_size("pythia-70m")
    assert known_size("1b") is None, "a name that is no Pythia's"


def test_without_the_hub_a_dry_run_gives_the_sizes_of_a_known_model_and_no_zeros_for_another() -> None:
    class Silent(HubFamily):
        def listings(self, steps, advance=lambda: None):  # type: ignore[no-untyped-def]
            return dict.fromkeys(steps, HubUnreachable("silent"))

        def fetch_small(self, step):  # type: ignore[no-untyped-def]
            raise CheckpointUnusable("silent")

    def told(name: str) -> str:
        names = {step: Named(f"step{step}", step) for step in (1, 2)}
        family = Silent(name, f"x/{name}", (1, 2), {1: 1, 2: 2}, names, Path("/nowhere"))
        return format_estimate(estimate(family, [1, 2], "float32", "all", True))

    assert told("pythia-70m") == (
        "download 332.0 MB, peak disk 332.0 MB, peak memory 729.4 MB, from the model's shape because the hub did not "
        "answer (weights alone)"
    )
    assert told("another") == "sizes are not known: the hub did not answer"
