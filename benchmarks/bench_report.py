"""Size of the report, time to make it, and how fast its slider answers, for a family of pythia-160m's shape.

    OMP_NUM_THREADS=1 python benchmarks/bench_report.py [--checkpoints 40] [--edges 1000]

Writes made-up results (four tasks, all kinds but IOI consistency) to a temporary folder, makes the report and opens it
in the installed Chromium. The slider's time runs from its event to the second frame after it, when the drawing is on
the screen, over all checkpoints; at least 33 ms of it are two frames of 60 Hz. Bounds: 15 MB; 200 ms as the median.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from plotting.make_report import main as make_report  # noqa: E402
from tests.support.browser import OpenPage, chromium  # noqa: E402
from tests.support.report_family import write_family  # noqa: E402

SCREENS = {"wide": (1600, 1000), "phone": (390, 844)}


def slider_times(page: Any, strongest: str) -> list[float]:
    """Milliseconds of the report from the slider's event to the second frame after it, for every checkpoint, sorted."""
    page.locator("#step").scroll_into_view_if_needed()
    page.select_option("#circuit-strongest", strongest)
    times: list[float] = page.evaluate(
        """async () => {
            const slider = document.getElementById("step");
            const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const times = [];
            for (let at = 0; at <= Number(slider.max); at += 1) {
                await frame();
                const began = performance.now();
                slider.value = at;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
                await frame();
                times.push(performance.now() - began);
            }
            return times;
        }"""
    )
    return sorted(times)


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
                for strongest in ("200", "all"):
                    times = slider_times(opened.page, strongest)
                    median, longest = times[len(times) // 2], times[-1]
                    print(f"{screen}, {strongest} edges: median {median:.0f} ms, longest {longest:.0f} ms")
                opened.close()


if __name__ == "__main__":
    main()
