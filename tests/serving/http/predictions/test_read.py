"""`POST /read`: the number in a picture with a line of digits, over HTTP."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.service import Service
from tests.support.training.samples import sample_test

TEST = sample_test()


def line_of(places: list[int], *, scale: int = 4, gap: int = 4, paper: int = 235) -> Image.Image:
    """Digits of the sample side by side, dark on paper."""
    parts = []
    for place in places:
        digit = TEST.images[place].numpy()
        columns = np.nonzero(digit.any(axis=0))[0]
        parts += [digit[:, columns.min() : columns.max() + 1], np.zeros((28, gap), np.uint8)]
    ink = np.pad(np.concatenate(parts, axis=1), 6)
    grey = Image.fromarray(ink).resize((ink.shape[1] * scale, ink.shape[0] * scale), Image.Resampling.BICUBIC)
    return Image.fromarray((paper - np.asarray(grey, float) * paper / 255).astype(np.uint8))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def read(service: Service, content: bytes, path: str = "/read/teacher", **options: object) -> httpx.Response:
    headers = {"Content-Type": "image/png"}
    return httpx.post(f"{service.url}{path}", content=content, headers=headers, **options)  # type: ignore[arg-type]


def test_digits_are_found_from_left_to_right(service: Service) -> None:
    places = [3, 27, 51, 75]
    answer = read(service, png(line_of(places)), "/read/teacher?include=input").json()
    assert len(answer["number"]) == len(answer["digits"]) == 4
    assert answer["number"] == "".join(str(digit["digit"]) for digit in answer["digits"])
    assert answer["model"] == "teacher"
    lefts = [digit["box"]["left"] for digit in answer["digits"]]
    assert lefts == sorted(lefts)
    for place, digit in zip(places, answer["digits"], strict=True):
        seen, drawn = np.array(digit["input"], float), TEST.images[place].numpy().astype(float)
        assert np.corrcoef(seen.ravel(), drawn.ravel())[0, 1] > 0.7


def test_each_digit_is_predicted_as_by_itself(service: Service) -> None:
    answer = read(service, png(line_of([3, 27])), "/read/teacher?include=input").json()
    images = [digit["input"] for digit in answer["digits"]]
    alone = httpx.post(f"{service.url}/predict/teacher", json={"images": images}).json()
    assert [one["digit"] for one in alone["predictions"]] == [one["digit"] for one in answer["digits"]]
    for one, other in zip(alone["predictions"], answer["digits"], strict=True):
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-4)


def test_a_box_is_in_pixels_of_the_file(service: Service) -> None:
    """Pictures are scaled down for the search."""
    picture = line_of([3, 27], scale=30)
    answer = read(service, png(picture)).json()
    ink = np.asarray(picture) < 120
    columns = np.nonzero(ink.any(axis=0))[0]
    first, last = answer["digits"][0]["box"], answer["digits"][-1]["box"]
    assert abs(first["left"] - columns.min()) < 12
    assert abs(last["left"] + last["width"] - columns.max()) < 12


def test_touching_digits_are_offered_apart(service: Service) -> None:
    """The networks of the tests are too small to tell where; that there is a choice is tested here."""
    answer = read(service, png(line_of([3, 27, 51], gap=0))).json()
    assert 1 <= len(answer["digits"]) <= 5


def test_the_default_model_reads(service: Service) -> None:
    answer = read(service, png(line_of([3])), "/read").json()
    assert answer["model"] == httpx.get(f"{service.url}/models").json()["default"]


def test_a_picture_in_json_or_a_form_is_read(service: Service) -> None:
    picture = png(line_of([3, 27]))
    expected = read(service, picture).json()["number"]
    encoded = base64.b64encode(picture).decode()
    for options in ({"json": {"image": encoded}}, {"files": {"file": picture}}):
        assert httpx.post(f"{service.url}/read/teacher", **options).json()["number"] == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"json": {"image": [0] * 784}}, 422, "expected a picture with a line of digits"),
        (
            {"files": [("a", png(line_of([3]))), ("b", png(line_of([3])))]},
            422,
            "found 2 pictures; expected one",
        ),
        ({"content": png(Image.new("L", (200, 80), 230))}, 422, "shows no digit"),
        ({"content": b"nothing"}, 415, "expected"),
    ],
)
def test_anything_else_is_rejected(
    service: Service, options: dict[str, object], status: int, message: str
) -> None:
    response = httpx.post(f"{service.url}/read/teacher", **options)  # type: ignore[arg-type]
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_many_marks_are_rejected_in_bounded_time(service: Service) -> None:
    marks = np.full((640, 640), 255, np.uint8)
    marks[::4, ::4] = 0
    marks[1::4, ::4] = 0
    assert read(service, png(Image.fromarray(marks))).status_code in {200, 422}
    comb = np.full((600, 640), 255, np.uint8)
    comb[100:500, 20:620:6] = comb[100:104, 20:620] = 0
    assert read(service, png(Image.fromarray(comb))).status_code in {200, 422}


def test_an_unknown_model_or_method_is_named(service: Service) -> None:
    assert read(service, b"", "/read/nobody").status_code == 404
    assert httpx.get(f"{service.url}/read").status_code == 405


def test_the_input_of_a_prediction_is_included_on_request(service: Service) -> None:
    image = TEST.images[3].tolist()
    for _ in range(3):  # the third one takes the fast path
        plain = httpx.post(f"{service.url}/predict", json={"image": image}).json()["predictions"][0]
        assert "input" not in plain
    with httpx.Client(base_url=service.url) as client:
        for _ in range(3):
            response = client.post("/predict?include=input", json={"image": image})
            assert response.json()["predictions"][0]["input"] == image
        response = client.post("/predict?include=inputs", json={"image": image})
        assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_input")
        assert "'inputs'" in response.json()["error"]["message"]
        assert client.post("/predict?other=1", json={"image": image}).status_code == 200
