"""Size of the report, time to make it, and how fast its slider answers, for a family of pythia-160m's shape.

    OMP_NUM_THREADS=1 python benchmarks/bench_report.py [--checkpoints 40] [--edges 1000]

Writes made-up results (four tasks, all kinds but those of the IOI algorithm), makes the report and opens it
in the installed Chromium. A redraw's time runs from its event to the second frame after it, when the drawing is on the
screen; at least 33 ms of it are two frames of 60 Hz. Measured are the slider over all checkpoints (one circuit; two
tasks side by side; with a head's details open), the threshold, and the search. Bounds: 15 MB; 200 ms as the median.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from circuits_over_time.plotting.make_report import main as make_report
from circuits_over_time.tests.support.browser import OpenPage, chromium
from circuits_over_time.tests.support.report_family import write_family

ROOT = Path(__file__).resolve().parents[1]

SCREENS = {"wide": (1600, 1000), "phone": (390, 844)}


def input_times(page: Any, field: str, values: list[str]) -> list[float]:
    """Milliseconds of the report from the event of an input to the second frame after it, for every value, sorted."""
    page.locator(f"#{field}").scroll_into_view_if_needed()
    times: list[float] = page.evaluate(
        """async ([field, values]) => {
            const input = document.getElementById(field);
            const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const times = [];
            for (const value of values) {
                await frame();
                const began = performance.now();
                input.value = value;
                input.dispatchEvent(new Event("input", { bubbles: true }));
                await frame();
                times.push(performance.now() - began);
            }
            return times;
        }""",
        [field, values],
    )
    return sorted(times)


def measure(page: Any, screen: str, steps: list[str]) -> None:
    """Print the times of one window."""

    def tell(what: str, times: list[float]) -> None:
        print(f"{screen}, {what}: median {times[len(times) // 2]:.0f} ms, longest {times[-1]:.0f} ms")

    for strongest in ("200", "all"):
        page.select_option("#circuit-strongest", strongest)
        tell(f"slider, {strongest} edges", input_times(page, "step", steps))
    tell("threshold, all edges", input_times(page, "threshold", [str(place) for place in range(0, 101, 5)]))
    page.locator("#threshold").fill("0")
    tell("search", input_times(page, "find", ["m", "m1", "a3.h1", "a3.h1->", "a11.h2 -> logits", "5.7", ""]))
    page.select_option("#other-task", "sva")
    page.check("#side")
    tell("slider, all edges, two tasks side by side", input_times(page, "step", steps))
    page.uncheck("#side")
    page.select_option("#other-task", "")
    page.fill("#find", "m5")
    page.press("#find", "Enter")
    tell("slider, all edges, with the details of an MLP", input_times(page, "step", steps))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--edges", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = write_family(Path(folder) / "results", arguments.checkpoints, n_edges=arguments.edges)
        path = Path(folder) / "report.html"
        began = time.perf_counter()
        if make_report(["-r", str(store.root), "-o", str(path)]):
            sys.exit("the report was not made")
        print(f"made in {time.perf_counter() - began:.1f} s, {path.stat().st_size / 1e6:.1f} MB")
        with chromium() as browser:
            for screen, (width, height) in SCREENS.items():
                opened = OpenPage(browser, path, width, height)
                measure(opened.page, screen, [str(at) for at in range(arguments.checkpoints)])
                opened.close()


if __name__ == "__main__":
    main()
