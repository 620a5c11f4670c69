"""The page in a real browser: draw, keyboard, touch, pictures, race, soft targets, lines, errors, accessibility."""

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Route, expect

from tests.support.page import SEVEN, Visit
from tests.support.service import ROOT, Service, eventually, free_port, running_service, starting_service

pytestmark = pytest.mark.browser

MODELS = 4
CARD = "---\nx: y\n---\n\n# student <b>\n\n- **bold** and `code`\n\n| errors | seeds |\n| --- | --- |\n| 7 ± 2 | 3 |"
BLOCKED = "Failed to load resource"
"""In the console, for every response with an error status."""


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Visit]:
    with Visit(browser, service.url) as visit:
        visit.wait_for_models(MODELS)
        yield visit


def test_every_model_reads_a_7_that_is_drawn(visit: Visit) -> None:
    visit.draw()
    visit.expect_digits("7", MODELS)
    expect(visit.page.locator("#summary")).to_contain_text(f"All {MODELS} models say 7")
    row = visit.page.locator('.model[data-model="student-int8"]')
    expect(row).to_contain_text("inference")
    expect(row).to_contain_text("round trip")
    expect(row).to_contain_text("accepted: ")
    expect(row).to_contain_text("agrees with teacher")
    expect(row.locator(".bars")).to_have_attribute("aria-label", re.compile("^7: "))
    expect(visit.page.locator("#seen")).to_have_attribute("aria-label", re.compile("models say 7"))
    expect(visit.page.locator("#live")).to_contain_text(f"All {MODELS} models say 7")
    visit.page.click("#pad-undo")
    expect(visit.digits()).to_have_text(["·"] * MODELS)


def test_predictions_follow_during_a_stroke(visit: Visit) -> None:
    mouse = visit.page.mouse
    mouse.move(*visit.corner("#pad canvas", SEVEN[0]))
    mouse.down()
    for point in SEVEN[1:]:
        mouse.move(*visit.corner("#pad canvas", point), steps=6)
    visit.expect_digits("7", MODELS)  # before the stroke has ended
    mouse.up()


def test_one_request_of_a_model_is_in_flight_and_stale_responses_are_dropped(visit: Visit) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    visit.page.route("**/predict/*", hold)
    visit.draw()
    for _ in range(3):
        visit.draw(((0.3, 0.5), (0.7, 0.5)))
    visit.page.wait_for_timeout(300)
    assert len(held) == MODELS
    visit.page.click("#pad-clear")
    for route in held:
        route.continue_()
    visit.page.wait_for_timeout(500)
    expect(visit.digits()).to_have_text(["·"] * MODELS)
    assert len(held) == MODELS  # nothing is sent for the empty drawing
    visit.page.unroute("**/predict/*")
    visit.draw()
    visit.expect_digits("7", MODELS)


def test_touch(browser: Browser, service: Service) -> None:
    phone = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
    with Visit(browser, service.url, **phone) as visit:
        visit.wait_for_models(MODELS)
        visit.page.locator("#pad").scroll_into_view_if_needed()
        send = visit.context.new_cdp_session(visit.page).send
        points = [visit.corner("#pad canvas", point) for point in SEVEN]
        send(
            "Input.dispatchTouchEvent",
            {"type": "touchStart", "touchPoints": [dict(zip("xy", points[0], strict=True))]},
        )
        for (x0, y0), (x1, y1) in pairwise(points):
            for step in range(1, 6):
                place = {"x": x0 + (x1 - x0) * step / 5, "y": y0 + (y1 - y0) * step / 5}
                send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [place]})
        send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        visit.expect_digits("7", MODELS)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 320
        expect(visit.page.locator("label[for=pad-photo]")).to_be_visible()


def test_keyboard(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    canvas = visit.page.locator("#pad canvas")
    for _ in range(20):
        keyboard.press("Tab")
        if canvas.evaluate("node => node === document.activeElement"):
            break
    for key, times in (("ArrowLeft", 7), ("ArrowUp", 8)):
        for _ in range(times):
            keyboard.press(key)
    expect(visit.page.locator("#live")).to_have_text("row 7, column 8")
    for key, times in (("Shift+ArrowRight", 12), ("Shift+ArrowDown", 1)):
        for _ in range(times):
            keyboard.press(key)
    for _ in range(6):
        for key in ("Shift+ArrowLeft", "Shift+ArrowDown", "Shift+ArrowDown"):
            keyboard.press(key)
    expect(visit.page.locator("#live")).to_contain_text("models say 7")
    visit.expect_digits("7", MODELS)
    visit.page.evaluate(
        """() => {
            window.said = [];
            const live = document.getElementById("live");
            new MutationObserver(() => said.push(live.textContent)).observe(live, { childList: true });
        }"""
    )
    keyboard.press("Space")  # erases the last cell
    said = visit.page.evaluate("said")  # the prediction may follow at once
    assert re.fullmatch(r"row \d+, column \d+", said[0])
    keyboard.press("Delete")
    expect(visit.digits()).to_have_text(["·"] * MODELS)


def test_pictures_are_opened_dropped_and_pasted(visit: Visit) -> None:
    seven = ROOT / "examples" / "seven.png"
    visit.page.set_input_files("#pad-file", seven)
    visit.expect_digits("7", MODELS)
    for event in ("drop", "paste"):
        visit.page.click("#pad-clear")
        expect(visit.digits()).to_have_text(["·"] * MODELS)
        visit.page.evaluate(
            """([event, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "seven.png", {type: "image/png"}));
                const options = {bubbles: true, cancelable: true};
                const pad = document.getElementById("pad");
                pad.dispatchEvent(event === "drop"
                    ? new DragEvent(event, {...options, dataTransfer: data})
                    : new ClipboardEvent(event, {...options, clipboardData: data}));
            }""",
            [event, list(seven.read_bytes())],
        )
        visit.expect_digits("7", MODELS)


def test_a_file_without_a_digit_is_explained(browser: Browser, service: Service, tmp_path: Path) -> None:
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with Visit(browser, service.url, errors=[BLOCKED]) as visit:
        visit.wait_for_models(MODELS)
        visit.page.set_input_files("#pad-file", tmp_path / "photo.heic")
        expect(visit.page.locator("#summary")).to_contain_text("HEIC")
        expect(visit.page.locator("#problem")).to_be_hidden()


def test_a_test_digit_is_predicted_as_it_is(visit: Visit) -> None:
    with visit.page.expect_request("**/predict/teacher") as sent:
        visit.page.click("#pad-sample")
    assert len(sent.value.post_data_buffer or b"") == 784
    expect(visit.page.locator("#summary")).to_contain_text("the label says")


def test_the_race_counts_errors_and_its_permalink_shows_them_again(visit: Visit, browser: Browser) -> None:
    visit.page.select_option("#race-count", "100")
    visit.page.click("#race-start")
    expect(visit.page.locator("#race-link")).to_be_visible(timeout=100_000)
    scores = visit.page.locator(".lane .score").all_inner_texts()
    assert len(scores) == MODELS
    for score, lane in zip(scores, visit.page.locator(".lane").all(), strict=True):
        assert lane.locator(".mistake").count() == int(score.split()[0])
        assert lane.locator("path").get_attribute("d").count("V0") >= 1  # type: ignore[union-attr]
    assert re.search(
        r"\d× faster$|\d× slower$|as fast$", scores[-1]
    )  # measured: any of them on a busy machine
    mistake = visit.page.locator(".mistake").first
    label = (mistake.get_attribute("aria-label") or "")[0]
    mistake.click()
    expect(visit.page.locator("#summary")).to_contain_text(f"the label says {label}")
    with Visit(browser, visit.page.url) as other:
        expect(other.page.locator("#race-note")).to_contain_text("A result from a link: 100 digits")
        assert other.page.locator(".lane .score").all_inner_texts() == scores


def test_an_invalid_permalink_is_rejected(browser: Browser, service: Service) -> None:
    lane = {
        "name": "<img>",
        "errors": 0,
        "inference": {"median": 1, "bins": []},
        "trip": {"median": 1, "bins": []},
    }
    documents = ({}, None, [], {"digits": 1, "date": "2026-11-26", "lanes": [lane]})
    texts = ["", "%%%", *(base64.urlsafe_b64encode(json.dumps(one).encode()).decode() for one in documents)]
    with Visit(browser, service.url) as visit:
        visit.wait_for_models(MODELS)
        for text in texts:
            visit.page.evaluate("text => { location.hash = 'draw'; location.hash = 'race=' + text; }", text)
            note = visit.page.locator("#race-note")
            expect(note).to_have_text("The link contains no valid result.")
            note.evaluate("node => { node.textContent = ''; }")
            expect(visit.page.locator(".lane")).to_have_count(MODELS)


def test_soft_targets_become_flatter_with_temperature(visit: Visit) -> None:
    visit.draw()
    visit.expect_digits("7", MODELS)
    visit.page.locator("#knowledge").scroll_into_view_if_needed()
    soft = visit.page.locator("#soft")
    expect(soft).to_have_attribute("aria-label", re.compile("teacher: 7"))
    expect(visit.page.locator("#maps canvas")).to_have_count(2)
    expect(visit.page.locator("#maps canvas").first).to_have_attribute(
        "aria-label", re.compile("teacher relies most on the")
    )
    expect(visit.page.locator("#maps-note")).to_contain_text("Correlation of the two maps")

    def top() -> float:
        heights = soft.locator("i").evaluate_all(
            "all => all.map(node => parseFloat(node.style.getPropertyValue('--p')))"
        )
        assert sum(heights) == pytest.approx(200, abs=0.1)  # per cent, of two models
        return float(max(heights))

    sharp = top()
    visit.page.locator("#temperature").fill("20")
    assert top() < sharp
    expect(visit.page.locator("#soft-note")).to_contain_text("KL(teacher ‖ student")


def test_a_number_is_read_with_a_box_around_each_digit(visit: Visit) -> None:
    visit.page.set_input_files("#line-file", ROOT / "examples" / "number.png")
    number = visit.page.locator("#number")
    expect(number).to_contain_text(re.compile(r"^\d{4}"))
    boxes = visit.page.locator("#line .boxes span")
    expect(boxes).to_have_count(4)
    lefts = [box["x"] for box in (one.bounding_box() for one in boxes.all()) if box]
    assert lefts == sorted(lefts)
    visit.page.click("#line-clear")
    expect(boxes).to_have_count(0)
    visit.draw(((0.4, 0.2), (0.6, 0.2), (0.5, 0.8)), "#line canvas")
    expect(boxes).to_have_count(1)


def test_a_number_that_was_cleared_before_its_response_is_not_shown(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/read", lambda route: held.append(route))  # noqa: PLW0108 - playwright marks functions
    visit.draw(((0.4, 0.2), (0.6, 0.2), (0.5, 0.8)), "#line canvas")
    eventually(lambda: visit.page.wait_for_timeout(50) or held)
    visit.page.click("#line-clear")
    with visit.page.expect_response("**/read"):
        held[0].continue_()
    visit.page.wait_for_timeout(300)
    expect(visit.page.locator("#number")).to_have_text("")
    expect(visit.page.locator("#line .boxes span")).to_have_count(0)


def test_the_snippets_send_the_same_request(visit: Visit) -> None:
    visit.draw()
    visit.expect_digits("7", MODELS)
    visit.page.select_option("#code-model", "teacher")
    expect(visit.page.locator("#curl")).to_contain_text("/predict/teacher")
    curl, python = (visit.page.locator(f"#{name}").text_content() for name in ("curl", "python"))
    assert curl
    assert python
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert (answer["model"], answer["predictions"][0]["digit"]) == ("teacher", 7)
    done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, check=True)
    assert "'digit': 7" in done.stdout


def test_a_model_without_a_card_shows_its_manifest(browser: Browser, service: Service) -> None:
    with Visit(browser, service.url, errors=[BLOCKED]) as visit:
        visit.wait_for_models(MODELS)
        visit.page.locator('.model[data-model="student"] .link').click()
        expect(visit.page.locator("dialog")).to_contain_text("SHA-256")
        visit.page.keyboard.press("Escape")
        expect(visit.page.locator("dialog")).to_be_hidden()


def test_feedback_is_hidden_where_it_is_off(browser: Browser, one_model: Path) -> None:
    with (
        running_service(one_model, "--api-servers", "1", "--no-feedback") as service,
        Visit(browser, service.url) as visit,
    ):
        visit.wait_for_models(1)
        expect(visit.page.locator("#feedback")).to_be_hidden()


def test_the_true_digit_is_counted_for_every_model(browser: Browser, model_repository: Path) -> None:
    with (
        running_service(model_repository, "--api-servers", "2") as service,
        Visit(browser, service.url) as visit,
    ):
        visit.wait_for_models(MODELS)
        visit.draw()
        visit.expect_digits("7", MODELS)
        feedback = visit.page.locator("#feedback")
        feedback.get_by_role("button", name="7").click()
        expect(feedback).to_contain_text("Thank you: a 7.")
        feedback.get_by_role("button", name="1").click()
        expect(feedback).to_contain_text("A label cannot be changed: draw it again.")
        found = httpx.get(f"{service.url}/feedback").json()["models"]
        assert [(one["labels"], one["correct"]) for one in found] == [(1, 1)] * MODELS
        visit.page.click("#pad-sample")
        expect(visit.page.locator("#summary")).to_contain_text("the label says")
        expect(feedback).not_to_contain_text("draw it again")
        feedback.get_by_role("button", name="0").click()
        expect(feedback).to_contain_text("Thank you: a 0.")


def test_a_digit_chosen_before_the_responses_is_sent_after_them(
    browser: Browser, model_repository: Path
) -> None:
    with (
        running_service(model_repository, "--api-servers", "1") as service,
        Visit(browser, service.url) as visit,
    ):
        visit.wait_for_models(MODELS)
        held: list[Route] = []
        visit.page.route("**/predict/*", lambda route: route.continue_() if chosen else held.append(route))
        chosen = False
        visit.draw()
        eventually(lambda: visit.page.wait_for_timeout(50) or len(held) == MODELS)
        feedback = visit.page.locator("#feedback")
        feedback.get_by_role("button", name="7").click()
        chosen = True
        for route in held:
            route.continue_()
        expect(feedback).to_contain_text("Thank you: a 7.")
        found = httpx.get(f"{service.url}/feedback").json()["models"]
        assert [(one["labels"], one["correct"]) for one in found] == [(1, 1)] * MODELS


def test_a_key_is_requested_and_used(browser: Browser, one_model: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(one_model, tmp_path / "models"))
    (models / "student" / "1" / "MODEL_CARD.md").write_text(CARD)
    flags = ("--api-servers", "1", "--api-key", "correct horse")
    with (
        running_service(models, *flags) as service,
        Visit(browser, service.url, errors=[BLOCKED]) as visit,
    ):
        key = visit.page.locator("#key-value")
        expect(key).to_be_focused()
        key.fill("wrong")
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("#problem")).to_contain_text("The API key is wrong")
        key.fill("correct horse")
        visit.page.keyboard.press("Enter")
        visit.wait_for_models(1)
        expect(visit.page.locator("#key")).to_be_hidden()
        visit.draw()
        visit.expect_digits("7", 1)
        expect(visit.page.locator("#curl")).to_contain_text("$DISTILLERY_API_KEY")
        visit.page.get_by_role("button", name="Model card of student").click()
        card = visit.page.locator("dialog")
        expect(card.get_by_role("heading", name="student <b>", exact=True)).to_be_visible()
        expect(card.get_by_role("cell", name="7 ± 2")).to_be_visible()
        expect(card.locator("li b")).to_have_text("bold")
        assert "correct horse" not in visit.page.content()
        assert (
            visit.page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        )


def test_an_overloaded_service_is_tried_again(browser: Browser, one_model: Path) -> None:
    flags = ("--api-servers", "1", "--max-in-flight", "1", "--client-timeout", "60")
    with (
        running_service(one_model, *flags) as service,
        Visit(browser, service.url, errors=[BLOCKED]) as visit,
    ):
        visit.wait_for_models(1)
        place = urlsplit(service.url)
        with socket.create_connection((place.hostname, place.port)) as other:
            other.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")  # in flight
            visit.page.wait_for_timeout(200)
            visit.draw()
            expect(visit.page.locator("#problem")).to_contain_text(
                "The service is overloaded. Next try in 1 s."
            )
        visit.expect_digits("7", 1)
        expect(visit.page.locator("#problem")).to_be_hidden()


def test_a_service_that_is_down_is_tried_again(browser: Browser, one_model: Path) -> None:
    port = free_port()
    with running_service(one_model, "--api-servers", "1", port=port) as service:
        visit = Visit(browser, service.url, errors=[BLOCKED])
        visit.wait_for_models(1)
    visit.draw()
    expect(visit.page.locator("#problem")).to_contain_text("The service does not respond")
    with starting_service(one_model, "--api-servers", "1", port=port) as service:
        visit.expect_digits("7", 1)
        expect(visit.page.locator("#problem")).to_be_hidden()
        visit.close()
        service.end()


def test_it_works_below_a_prefix(browser: Browser, one_model: Path) -> None:
    flags = ("--api-servers", "1", "--root-path", "/digits")
    with running_service(one_model, *flags) as service, Visit(browser, f"{service.url}/digits") as visit:
        assert visit.page.url == f"{service.url}/digits/"
        visit.wait_for_models(1)
        visit.draw()
        visit.expect_digits("7", 1)


def test_axe_finds_nothing(browser: Browser, service: Service) -> None:
    lane = {
        "errors": 3,
        "inference": {"median": 0.2, "bins": [1, 5, 2]},
        "trip": {"median": 2, "bins": [1, 9]},
    }
    lanes = [{"name": name, **lane} for name in ("teacher", "student")]
    result = json.dumps({"digits": 400, "date": "2026-11-26", "lanes": lanes}).encode()
    url = f"{service.url}/#race={base64.urlsafe_b64encode(result).decode()}"
    with Visit(browser, url, errors=[BLOCKED], bypass_csp=True) as visit:  # axe is injected
        visit.wait_for_models(MODELS)
        expect(visit.page.locator(".lane")).to_have_count(2)
        visit.draw()
        visit.expect_digits("7", MODELS)
        visit.page.locator("#knowledge").scroll_into_view_if_needed()
        expect(visit.page.locator("#maps canvas")).to_have_count(2)
        visit.page.set_input_files("#line-file", ROOT / "examples" / "number.png")
        expect(visit.page.locator("#line .boxes span")).to_have_count(4)
        visit.page.evaluate(  # axe leaves out what is not laid out
            "document.querySelectorAll('section').forEach((one) => (one.style.contentVisibility = 'visible'))"
        )
        found = []
        for dialog in (False, True):
            if dialog:
                visit.page.locator(".model .link").first.click()
                expect(visit.page.locator("dialog")).to_contain_text("SHA-256")
            for scheme, width in (("light", 1280), ("dark", 320)):
                visit.page.emulate_media(color_scheme=scheme)
                visit.page.set_viewport_size({"width": width, "height": 800})
                found += Axe().run(visit.page).response["violations"]
                assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not found, json.dumps(found, indent=1)[:4000]
