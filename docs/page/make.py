"""Make the figures of docs/page.md and the README's animation from a running service: `python docs/page/make.py [URL]`.

Needs Debian's chromium (make system). Colours are reduced to a palette, so that the files are small.
"""

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import cos, sin
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from PIL import Image
from playwright.sync_api import Browser, Route, expect

from tests.support.page import SEVEN, Visit, chromium

HERE = Path(__file__).parent
NUMBER = HERE.parents[1] / "examples" / "number.png"
FRAME_MS = 250
NINE = (
    *((0.5 + 0.15 * cos(angle / 4), 0.34 - 0.15 * sin(angle / 4)) for angle in range(2, 26)),
    *((0.64 - 0.1 * step / 8, 0.3 + 0.55 * step / 8) for step in range(1, 9)),
)
"""Points of a 9."""


def light_palette() -> Image.Image:
    """Return the colours of the page's light theme, and their mixtures with white at the edges of letters."""
    style = (HERE.parents[1] / "serving/http/page/files/style.css").read_text().split("@media")[0]
    names = [
        name if len(name) == 6 else "".join(2 * digit for digit in name)
        for name in re.findall("#([0-9a-f]+);", style)
    ]
    found = [bytes.fromhex(name) for name in dict.fromkeys([*names, "000000"])]
    mixed = [
        bytes(round(255 - part * (255 - value)) for value in one) for one in found for part in (1, 0.66, 0.33)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette(b"".join(mixed))
    return palette


def save(name: str, png: bytes, colours: int = 96) -> None:
    """Write a screenshot with a palette."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(colours, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)


@contextmanager
def opened(
    browser: Browser, url: str, width: int = 1120, height: int = 820, **options: Any
) -> Iterator[Visit]:
    """Open the page."""
    options = {"viewport": {"width": width, "height": height}, "color_scheme": "light"} | options
    visit = Visit(browser, url, **options)
    expect(visit.page.locator(".model").first).to_be_visible()
    yield visit
    visit.context.close()


def drawn(visit: Visit) -> None:
    """Draw a 7, and wait for all models."""
    visit.draw()
    expect(visit.page.locator("#timing")).to_contain_text("last response")
    visit.page.wait_for_timeout(300)


def parts(browser: Browser, url: str) -> None:
    """Write a figure of each part of the page."""
    with opened(browser, url) as visit:
        drawn(visit)
        while visit.page.get_by_text("× faster").count() == 0:  # enough responses for a median
            visit.page.click("#pad-clear")
            drawn(visit)
        save("draw", visit.page.screenshot())
        visit.page.locator("#knowledge").scroll_into_view_if_needed()
        visit.page.locator("#temperature").fill("5")
        expect(visit.page.locator("#maps canvas")).to_have_count(2)
        save("knowledge", visit.page.locator("#knowledge").screenshot())
        visit.page.set_input_files("#line-file", NUMBER)
        expect(visit.page.locator("#line .boxes span").first).to_be_visible()
        save("read", visit.page.locator("#read").screenshot())
        save("code", visit.page.locator("#code").screenshot())
        visit.page.click("#race-start")
        expect(visit.page.locator("#race-link")).to_be_visible(timeout=600_000)
        save("race", visit.page.locator("#race").screenshot())
    phone = {"has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    with opened(browser, url, 360, 780, **phone) as visit:
        drawn(visit)
        visit.page.evaluate("scrollTo(0, 0)")
        save("touch", visit.page.screenshot())
    with opened(browser, url) as visit:
        canvas = visit.page.locator("#pad canvas")
        canvas.focus()
        for key, times in (
            ("ArrowLeft", 6),
            ("ArrowUp", 8),
            ("Shift+ArrowRight", 12),
            ("Shift+ArrowDown", 9),
        ):
            for _ in range(times):
                visit.page.keyboard.press(key)
        visit.page.wait_for_timeout(500)
        save("keyboard", visit.page.screenshot(clip={"x": 0, "y": 0, "width": 1120, "height": 560}))


def errors(browser: Browser, url: str) -> None:
    """Write a figure of each error, which the browser simulates."""

    def respond(status: int, code: str) -> Callable[[Route], None]:
        body = f'{{"error": {{"code": "{code}", "message": "{code}"}}}}'
        return lambda route: route.fulfill(status=status, body=body, content_type="application/json")

    top = {"x": 0, "y": 0, "width": 1120, "height": 330}
    with opened(browser, url) as visit:
        visit.page.route("**/predict*", respond(503, "overloaded"))
        visit.draw()
        expect(visit.page.locator("#problem")).to_be_visible()
        save("overloaded", visit.page.screenshot(clip=top))
    with opened(browser, url) as visit:
        drawn(visit)
        visit.context.set_offline(True)
        visit.draw()
        expect(visit.page.locator("#problem")).to_be_visible()
        save("down", visit.page.screenshot(clip=top))
    visit = Visit(browser, "about:blank", viewport={"width": 1120, "height": 820})
    visit.page.route("**/models", respond(401, "unauthorized"))
    visit.page.goto(url)
    expect(visit.page.locator("#key")).to_be_visible()
    save("key", visit.page.screenshot(clip=top))
    visit.context.close()


def animation(browser: Browser, url: str) -> None:
    """Write the animation: a 7 and a 9 are drawn, then a race."""
    frames: list[Image.Image] = []
    times: list[int] = []

    def shoot(visit: Visit, milliseconds: int = FRAME_MS) -> None:
        frames.append(Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB"))
        times.append(milliseconds)

    with opened(browser, url, 960, 720) as visit:
        mouse = visit.page.mouse
        for stroke in (SEVEN, NINE):
            mouse.move(*visit.corner("#pad canvas", stroke[0]))
            mouse.down()
            for index, point in enumerate(stroke[1:], 1):
                mouse.move(*visit.corner("#pad canvas", point), steps=4)
                if index % (len(stroke) // 4) == 0:
                    visit.page.wait_for_timeout(300)
                    shoot(visit)
            mouse.up()
            visit.page.wait_for_timeout(500)
            shoot(visit, 1400)
            visit.page.click("#pad-clear")
        visit.page.locator("#race").evaluate("node => node.scrollIntoView()")
        visit.page.select_option("#race-count", "200")
        visit.page.click("#race-start")
        for done in range(0, 200, 25):
            while visit.page.locator("#race-progress").evaluate("node => node.value") < done:
                visit.page.wait_for_timeout(20)
            shoot(visit)
        expect(visit.page.locator("#race-link")).to_be_visible(timeout=200_000)
        shoot(visit, 2500)
    palette = light_palette()
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    reduced[0].save(
        HERE / "demo.gif", save_all=True, append_images=reduced[1:], duration=times, loop=0, optimize=False
    )


def main() -> None:
    """Make all figures."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    with chromium() as browser:
        parts(browser, url)
        errors(browser, url)
        animation(browser, url)


if __name__ == "__main__":
    main()
