"""The model's card and its headline, as the service shows them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.systems.servers import running_service
from serving.codecs.schemas import ErrorAnswer
from serving.model.repository import LARGEST_CARD, RepositoryError, load_repository, read_card

CARD = "# student\n\nerrs on **7 ± 2** of 200 digits; KL(teacher ‖ student)\n"
HEADLINE = {"test_errors": 7.0, "test_accuracy": 0.965}


@pytest.fixture(scope="module")
def repository(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a card, and a teacher without."""
    root = Path(shutil.copytree(two_models, tmp_path_factory.mktemp("carded") / "models"))
    student = root / "student" / "1"
    (student / "MODEL_CARD.md").write_text(CARD, encoding="utf-8")
    manifest = json.loads((student / "manifest.json").read_bytes())
    manifest |= {"headline": HEADLINE, "calibration_temperature": 1.25}
    (student / "manifest.json").write_text(json.dumps(manifest))
    (root / "teacher" / "1" / "MODEL_CARD.md").unlink(missing_ok=True)
    return root


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[httpx.Client]:
    with (
        running_service(repository, "--api-servers", "1") as url,
        httpx.Client(base_url=url, timeout=10) as client,
    ):
        yield client


def test_the_card_is_shown_as_it_was_written(client: httpx.Client) -> None:
    answer = client.get("/models/student/card")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/markdown; charset=utf-8")
    assert answer.content == CARD.encode()


def test_a_model_without_a_card_says_how_to_get_one(client: httpx.Client) -> None:
    answer = client.get("/models/teacher/card")
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert (answer.status_code, error.code) == (404, "not_found")
    assert "teacher has no model card; `distillery-train report` writes it" in error.message


def test_no_such_model(client: httpx.Client) -> None:
    answer = client.get("/models/nobody/card")
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert (answer.status_code, error.code) == (404, "unknown_model")
    assert "this service has student, teacher" in error.message


def test_the_manifest_shows_headline_and_temperature(client: httpx.Client) -> None:
    student = client.get("/models/student").json()
    assert (student["headline"], student["calibration_temperature"]) == (HEADLINE, 1.25)


def test_the_card_is_documented(client: httpx.Client) -> None:
    responses = client.get("/openapi.json").json()["paths"]["/models/{model}/card"]["get"]["responses"]
    assert set(responses) == {"200", "404"}
    assert set(responses["200"]["content"]) == {"text/markdown"}
    assert responses["404"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"x" * (LARGEST_CARD + 1), "has more than 1,048,576 bytes"), (b"\xff\xfe", "is not UTF-8")],
)
def test_a_card_that_cannot_be_shown_is_refused_at_start(
    repository: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    root = Path(shutil.copytree(repository, tmp_path / "models"))
    (root / "student" / "1" / "MODEL_CARD.md").write_bytes(content)
    with pytest.raises(RepositoryError, match=f"student/1/MODEL_CARD.md {message}.*export the model again"):
        read_card(load_repository(root)["student"])


def test_the_largest_card(repository: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(repository, tmp_path / "models"))
    (root / "student" / "1" / "MODEL_CARD.md").write_bytes(b"x" * LARGEST_CARD)
    assert len(read_card(load_repository(root)["student"]) or "") == LARGEST_CARD
    assert read_card(load_repository(root)["teacher"]) is None
