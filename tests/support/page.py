"""Use the web page as a person does: draw, and read what it shows."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

SEVEN = ((0.25, 0.22), (0.75, 0.22), (0.62, 0.45), (0.52, 0.65), (0.45, 0.85))
"""Corners of a 7 as shares of the drawing area."""
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)

CHROMIUM = shutil.which("chromium")
"""Debian's; playwright's own cannot be downloaded everywhere."""

Stroke = Sequence[tuple[float, float]]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser that reaches this machine only."""
    flags = (
        "--no-sandbox",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Visit:
    """A page of the service in a browser; errors in its console fail the test at `close`."""

    def __init__(self, browser: Browser, url: str, *, errors: Sequence[str] = (), **options: object) -> None:
        """`errors` are parts of the messages that the console may contain."""
        self.context = browser.new_context(reduced_motion="reduce", **options)  # type: ignore[arg-type]
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self._messages: list[str] = []
        self._expected = errors
        self.page.on("pageerror", lambda error: self._messages.append(str(error)))
        self.page.on(
            "console", lambda message: message.type == "error" and self._messages.append(message.text)
        )
        self.page.goto(url)

    def close(self) -> None:
        """Close it. Raises `AssertionError` if its scripts have failed, or the console shows another error."""
        self.context.close()
        unexpected = [text for text in self._messages if not any(part in text for part in self._expected)]
        assert not unexpected

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for_models(self, count: int) -> None:
        """Wait until the page shows `count` models."""
        expect(self.page.locator(".model")).to_have_count(count)

    def corner(self, selector: str, point: tuple[float, float]) -> tuple[float, float]:
        """Return a point of an element in the coordinates of the page."""
        box = self.page.locator(selector).bounding_box()
        assert box
        return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]

    def draw(self, stroke: Stroke = SEVEN, selector: str = "#pad canvas") -> None:
        """Draw a stroke with the mouse."""
        self.page.locator(selector).scroll_into_view_if_needed()
        mouse = self.page.mouse
        mouse.move(*self.corner(selector, stroke[0]))
        mouse.down()
        for point in stroke[1:]:
            mouse.move(*self.corner(selector, point), steps=6)
        mouse.up()

    def digits(self) -> Locator:
        """The digits that the models predict."""
        return self.page.locator(".model .digit")

    def expect_digits(self, digit: str, count: int) -> None:
        """Wait until all models predict `digit`, and the page says so."""
        expect(self.digits()).to_have_text([digit] * count)
        expect(self.page.locator("#timing")).to_contain_text("from the stroke to the last response")
