"""A headless Chromium for tests of pages, or the reason why there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Beyond what Playwright passes anyway: no sandbox in containers, no graphics card, nothing asked of the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's handle of an installed Chromium or Chrome; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the playwright package (requirements-dev.txt)"
    )
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class OpenPage:
    """A page of a file, opened with the network off; collects what it complains of and asks for.

    Args:
        browser: what `chromium` yields.
        path: an HTML file.
        width: of the window in pixels.
        height: of the window in pixels.
        touch: whether it is a touch screen.
        unfold: whether to open what the page has folded, but for the list of edges.
    """

    def __init__(
        self,
        browser: Any,
        path: Any,
        width: int = 1600,
        height: int = 1000,
        touch: bool = False,
        unfold: bool = True,
    ) -> None:
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, has_touch=touch)
        self.page = context.new_page()
        self.page.set_default_timeout(10_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")
        if unfold:
            self.unfold()

    def unfold(self) -> None:
        """Open what is folded, but for the list of edges."""
        opened = "(folds) => folds.forEach((fold) => { fold.open = true; })"
        self.page.locator("details:not(#edge-list)").evaluate_all(opened)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def see_everything(self) -> None:
        """Scroll from top to bottom, and wait until every figure is drawn."""
        for figure in self.page.locator("figure").all():
            figure.scroll_into_view_if_needed()
        # Not `wait_for_function`, which the page's content security policy stops as soon as it has to wait.
        for figure in self.page.locator(".plot").all():
            figure.locator(".main-svg").first.wait_for(state="attached")

    def close(self) -> None:
        """Close the page and its context."""
        self.page.context.close()
