"""Model cards and headlines at /models."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from serving.codecs.schemas import ErrorAnswer
from serving.engine.admission.api_keys import Access
from serving.engine.metrics.exposition import Exposition
from serving.engine.metrics.series import Metrics, metrics_table
from serving.engine.models import ServedModels
from serving.http.guards import Guards
from serving.http.routes import add_routes
from serving.model.repository import LARGEST_CARD, RepositoryError, load_repository
from tests.support.deployment import deploy

CARD = "# student\n\n**7 ± 2** errors on 200 digits; KL(teacher ‖ student)\n"
Get = Callable[[str], httpx.Response]
HEADLINE = {"test_errors": 7.0, "test_accuracy": 0.965}


@pytest.fixture(scope="module")
def repository(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a model card, and a teacher without one."""
    root = Path(shutil.copytree(two_models, tmp_path_factory.mktemp("carded") / "models"))
    student = root / "student" / "1"
    (student / "MODEL_CARD.md").write_text(CARD, encoding="utf-8")
    manifest = json.loads((student / "manifest.json").read_bytes())
    manifest |= {"headline": HEADLINE, "calibration_temperature": 1.25}
    (student / "manifest.json").write_text(json.dumps(manifest))
    (root / "teacher" / "1" / "MODEL_CARD.md").unlink(missing_ok=True)
    return root


@pytest.fixture(scope="module")
def get(repository: Path) -> Get:
    """GET a path from the routes alone, without a server."""
    app = FastAPI()
    models = ServedModels(deploy(repository))
    slots = models.deployment.slots
    exposition = Exposition(Metrics(metrics_table(len(slots), ["rest"], ["/predict"], 1), 1), lambda: slots)
    add_routes(app, models, exposition, Guards(Access(), []), check_ready=lambda: None)

    async def fetch(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path)

    return lambda path: asyncio.run(fetch(path))


def test_a_card_is_returned_unchanged(get: Get) -> None:
    answer = get("/models/student/card")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/markdown; charset=utf-8")
    assert answer.content == CARD.encode()


def test_a_model_without_a_card_is_an_error_that_names_the_command(get: Get) -> None:
    answer = get("/models/teacher/card")
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert (answer.status_code, error.code) == (404, "not_found")
    assert "teacher has no model card; `distillery-train report` writes it" in error.message


def test_an_unknown_model_is_an_error(get: Get) -> None:
    answer = get("/models/nobody/card")
    error = ErrorAnswer.model_validate_json(answer.content).error
    assert (answer.status_code, error.code) == (404, "unknown_model")
    assert "this service has student, teacher" in error.message


def test_the_manifest_includes_headline_and_temperature(get: Get) -> None:
    student = get("/models/student").json()
    assert (student["headline"], student["calibration_temperature"]) == (HEADLINE, 1.25)


def test_the_card_is_documented(get: Get) -> None:
    responses = get("/openapi.json").json()["paths"]["/models/{model}/card"]["get"]["responses"]
    assert {"200", "404"} <= set(responses)
    assert set(responses["200"]["content"]) == {"text/markdown"}
    assert responses["404"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"x" * (LARGEST_CARD + 1), "has more than 1,048,576 bytes"), (b"\xff\xfe", "is not UTF-8")],
)
def test_an_invalid_card_is_rejected_at_start(
    repository: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    root = Path(shutil.copytree(repository, tmp_path / "models"))
    (root / "student" / "1" / "MODEL_CARD.md").write_bytes(content)
    with pytest.raises(RepositoryError, match=f"student/1/MODEL_CARD.md {message}.*export the model again"):
        load_repository(root)


def test_a_card_of_the_maximum_size_is_accepted(repository: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(repository, tmp_path / "models"))
    (root / "student" / "1" / "MODEL_CARD.md").write_bytes(b"x" * LARGEST_CARD)
    assert len(load_repository(root)["student"].card or "") == LARGEST_CARD
    assert load_repository(root)["teacher"].card is None
