"""Patience with the hub: what is tried again, and after how long.

A request is tried again after 429, 408 and 5xx answers, timeouts and broken connections. Each wait is twice the one
before, and at least as long as the hub asks for (`Retry-After`, in seconds or as a date). Everything else is final.
"""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before the second, third, ... attempt."""
LONGEST = 900.0
"""The longest wait that the hub may ask for; its limits count requests in windows of five minutes."""

log = logging.getLogger(__name__)

T = TypeVar("T")


def wait(seconds: float) -> None:
    """Sleep. Tests put their own clock here."""
    time.sleep(seconds)


def patiently(
    request: Callable[[], T], what: str, progress: Callable[[], int] = lambda: 0, waits: Sequence[float] = WAITS
) -> T:
    """Make a request, and try again where that may help.

    Args:
        request: makes it.
        what: what it asks for, for the log.
        progress: how many bytes have arrived. Whenever there are more than before, the waits start anew.
        waits: seconds between the attempts, if the hub asks for no longer ones.

    Raises:
        Exception: that of the last attempt.
    """
    left, arrived = iter(waits), progress()
    while True:
        try:
            return request()
        except Exception as error:
            reason = _passing(error)
            if reason is None:
                raise
            if (now := progress()) > arrived:
                left, arrived = iter(waits), now
            pause = next(left, None)
            asked = _asked(error)
            if pause is None or asked > LONGEST:
                raise
            pause = max(pause, asked)
            log.warning("%s: %s; trying again in %.0f s", what, reason, pause)
        wait(pause)


def without_secrets(text: str) -> str:
    """A text without the user's token and without passwords or signatures in addresses."""
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "***")
    text = re.sub(r"(?i)\bbearer\s+[^\s'\"]+", "Bearer ***", text)
    text = re.sub(r"//[^/\s@]+@", "//***@", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)


def one_line(error: BaseException) -> str:
    """An error's first line, without secrets."""
    text = " ".join(str(error).strip().split("\n")[0].split()) or type(error).__name__
    return without_secrets(text)[:200]


def _passing(error: Exception) -> str | None:
    """What is wrong, if it may pass; None if it will not."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return None
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return f"the hub answered {status}" if status in (408, 429) or status >= 500 else None
    if isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError)):
        passing = not isinstance(error, (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError))
        return one_line(error) if passing else None
    # The hub's client says this if a stream ends early.
    return "it broke off" if type(error) is OSError and "Consistency check failed" in str(error) else None


def _asked(error: Exception) -> float:
    """How long the hub asks to wait, in seconds; 0 if it does not say."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0
