"""One browser for the tests of a file: playwright occupies the event loop of the thread until it stops."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.page import CHROMIUM, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("needs Debian's chromium: make system")
    with chromium() as browser:
        yield browser
