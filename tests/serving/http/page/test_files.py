"""The page's files: which are served, with which headers, and what they may load."""

import gzip
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.http.page.draw_digits import EVERY, draw
from tests.support.service import ROOT, Service, running_service
from training.data.mnist import find_mnist
from training.data.mnist_files import read_verified

FILES = Path(str(files("serving.http.page"))) / "files"
MAX_WEIGHT = 60_000
"""Bytes that a browser loads for the page; the test digits are loaded when they are first used."""
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url) as client:
        yield client


def linked() -> set[str]:
    """The names of all files that the page refers to."""
    text = "".join(path.read_text() for path in FILES.iterdir() if path.suffix != ".bin")
    names = re.findall(r'(?:"page/|from "\./)([\w.-]+)"', text)
    return set(names) - {"service.json"}


def test_all_files_are_served_and_no_others(client: httpx.Client) -> None:
    names = {path.name for path in FILES.iterdir()}
    assert linked() == names - {"index.html"}
    assert client.get("/", headers=BROWSER).content == (FILES / "index.html").read_bytes()
    for name in linked():
        for encoding in ("gzip", "identity"):
            answer = client.get(f"/page/{name}", headers={"Accept-Encoding": encoding})
            assert answer.status_code == 200
            content = (FILES / name).read_bytes()
            assert answer.content == (gzip.decompress(content) if name == "digits.bin" else content)
            assert (answer.headers.get("Content-Encoding") == "gzip") == (encoding == "gzip")
    paths = (
        "index.html",
        "",
        ".",
        "main.js/",
        "../routes.py",
        "..%2froutes.py",
        "%2e%2e/routes.py",
        "x.js",
    )
    statuses = {path: client.get(f"/page/{path}").status_code for path in paths}
    assert {path for path, status in statuses.items() if status == 200} == {"main.js/"}  # a slash is ignored


def test_a_browser_revalidates_a_file_and_loads_it_once(client: httpx.Client) -> None:
    for path in ("/", "/page/main.js", "/page/digits.bin"):
        first = client.get(path, headers=BROWSER)
        assert first.headers["Cache-Control"] == "no-cache"
        again = client.get(path, headers=BROWSER | {"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers=BROWSER | {"If-None-Match": '"other"'}).content == first.content


def test_media_types(client: httpx.Client) -> None:
    types = {"style.css": "text/css", "main.js": "text/javascript", "icon.svg": "image/svg+xml"}
    for name, expected in types.items():
        assert client.get(f"/page/{name}").headers["Content-Type"].partition(";")[0] == expected


def test_the_page_weighs_little_and_loads_every_module_at_once(client: httpx.Client) -> None:
    paths = ["/", *(f"/page/{name}" for name in sorted(linked() - {"digits.bin"}))]
    answers = [client.get(path, headers=BROWSER) for path in paths]
    assert sum(answer.num_bytes_downloaded for answer in answers) <= MAX_WEIGHT
    page = (FILES / "index.html").read_text()
    modules = {path.name for path in FILES.glob("*.js")}
    loaded = r'(?:rel="modulepreload"|script type="module") fetchpriority="low" (?:href|src)="page/([\w.]+)"'
    assert set(re.findall(loaded, page)) == modules


def test_the_animation_of_the_readme_is_small() -> None:
    assert (ROOT / "docs" / "page" / "demo.gif").stat().st_size <= 400_000


def test_nothing_is_inline_or_from_another_host(client: httpx.Client) -> None:
    policy = client.get("/", headers=BROWSER).headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "://" not in policy
    assert not re.search(
        r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", (FILES / "index.html").read_text()
    )
    for path in FILES.iterdir():
        if path.suffix in {".html", ".css", ".js"}:
            text = path.read_text()
            loaded = re.findall(r"""(?:src=|url\(|import |from |fetch\()["']?https?:""", text)
            assert not loaded + re.findall(
                "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval", text
            ), path


def test_only_clients_that_read_html_get_the_page(client: httpx.Client) -> None:
    for accept in ("text/html", "*/*", "TEXT/HTML;q=0.9", ""):
        answer = client.get("/", headers={"Accept": accept})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "Accept" in answer.headers["Vary"].split(", ")
    answer = client.get("/", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.headers["Location"]) == (307, "docs")


def test_the_page_can_be_turned_off(one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "1", "--no-page") as service:
        answer = httpx.get(f"{service.url}/", headers=BROWSER)
        assert (answer.status_code, answer.headers["Location"]) == (307, "docs")
        assert httpx.get(f"{service.url}/page/main.js").status_code == 404


def test_the_page_knows_the_service(client: httpx.Client) -> None:
    facts = client.get("/page/service.json").json()
    assert (facts["max_images"], facts["feedback"]) == (200, True)


def test_the_digits_are_every_25th_of_the_test_set(tmp_path: Path) -> None:
    images = np.arange(100 * 784).astype(np.uint8)
    labels = (np.arange(100) % 10).astype(np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    drawn = gzip.decompress(draw(tmp_path))
    assert list(drawn[:4]) == [0, 5, 0, 5]
    assert drawn[4:] == images.reshape(100, 784)[::EVERY].tobytes()
    shipped = np.frombuffer(gzip.decompress((FILES / "digits.bin").read_bytes()), np.uint8)
    assert len(shipped) == 400 * 785
    assert np.bincount(shipped[:400]).tolist() == [27, 44, 43, 46, 47, 28, 35, 47, 47, 36]


@pytest.mark.slow
def test_the_shipped_digits_are_those_of_mnist(tmp_path: Path) -> None:
    folder = find_mnist(None)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(read_verified(folder, name), 1))
    assert gzip.decompress(draw(tmp_path)) == gzip.decompress((FILES / "digits.bin").read_bytes())
