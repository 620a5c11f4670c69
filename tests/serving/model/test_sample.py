"""The sample in a manifest: written by the export, checked before a version is served."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.model.graph_check import GraphError
from serving.model.repository import Sample, load_model, load_repository
from serving.model.sample import check_sample, make_sample
from serving.model.session import Session
from tests.support.training.samples import sample_test
from tests.support.versions import scaled

DIGITS = sample_test().images.numpy()


def test_every_exported_file_has_a_digit_of_each_class_and_computes_its_logits(
    model_repository: Path,
) -> None:
    for entry in load_repository(model_repository).values():
        sample = entry.manifest.sample
        assert sample
        logits = np.array(sample.logits)
        assert logits.shape == (10, 10)
        check_sample(entry.manifest, Session(entry.content))


def test_another_network_fails(two_versions: Path) -> None:
    first, second = (load_model(two_versions / "student" / version) for version in ("1", "2"))
    with pytest.raises(GraphError, match=r"its logits differ from those of its export by .*; at most 0.001"):
        check_sample(first.manifest, Session(second.content))
    with pytest.raises(GraphError, match="its logits differ"):
        check_sample(first.manifest, Session(scaled(first.content)))


def test_an_older_manifest_without_a_sample_passes(two_versions: Path) -> None:
    entry = load_model(two_versions / "student" / "1")
    check_sample(entry.manifest.model_copy(update={"sample": None}), Session(entry.content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.model_copy(update={"images": "%"}), "cannot be read"),
        (lambda one: one.model_copy(update={"images": "AAAA"}), "cannot be read"),
        (lambda one: make_sample(DIGITS[:1], one.logits), "784 bytes of pixels"),
        (lambda one: one.model_copy(update={"logits": one.logits[:3]}), "bytes of pixels"),
        (lambda one: one.model_copy(update={"logits": [row[:9] for row in one.logits]}), r"\(10, 9\)"),
        (lambda one: one.model_copy(update={"logits": [*one.logits[:9], [0.0]]}), "rows of different lengths"),
        (lambda one: one.model_copy(update={"logits": [[float("nan")] * 10] * 10}), "logits differ"),
    ],
)  # fmt: skip
def test_a_damaged_sample_fails(two_versions: Path, change: Callable[[Sample], Sample], message: str) -> None:
    entry = load_model(two_versions / "student" / "1")
    assert entry.manifest.sample
    manifest = entry.manifest.model_copy(update={"sample": change(entry.manifest.sample)})
    with pytest.raises(GraphError, match=message):
        check_sample(manifest, Session(entry.content))


def test_a_bomb_is_not_decompressed(two_versions: Path) -> None:
    entry = load_model(two_versions / "student" / "1")
    bomb = make_sample(np.zeros((50_000, 28, 28), np.uint8), np.zeros((1, 10), np.float32))
    manifest = entry.manifest.model_copy(update={"sample": bomb})
    with pytest.raises(GraphError, match="785 bytes of pixels"):
        check_sample(manifest, Session(entry.content))
