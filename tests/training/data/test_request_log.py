"""A request log as a transfer set: what is left out, what is held out, what its hash depends on."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.request_log import RequestLogError
from distillery.request_log.distinct import HELD_OUT, UNLABELLED, content_hash, is_held_out
from tests.support.logged_images import write_log
from tests.support.training.samples import sample_test, sample_training
from training.data.mnist_files import DatasetError
from training.data.request_log import LoggedDigits

TRAINING, VALIDATION = sample_training()
TEST = sample_test()
INVERTED = 255 - TRAINING.images.numpy()
LABELS = TRAINING.labels.tolist()


def hashes(images: torch.Tensor) -> set[bytes]:
    return {content_hash(image) for image in images.numpy()}


def test_every_image_counts_once_and_is_learned_or_held_out(mnist: Path, tmp_path: Path) -> None:
    half = [label if number % 2 else -1 for number, label in enumerate(LABELS)]
    write_log(tmp_path / "log", INVERTED, half)
    write_log(tmp_path / "log", INVERTED[:30], first_id=1000)
    log = LoggedDigits.read(tmp_path / "log", mnist)
    counts = log.counts
    assert (counts.rows, counts.duplicates) == (530, 30)
    assert counts.labelled + counts.unlabelled + counts.held_out == 500
    assert len(log.training) == counts.labelled + counts.unlabelled
    assert counts.labelled == int((log.training.labels != UNLABELLED).sum()) == len(log.labelled)
    assert len(log.validation) == counts.validation > 0
    expected = {content_hash(image): label for image, label in zip(INVERTED, half, strict=True)}
    for digits, held_out in ((log.training, False), (log.validation, True)):
        for image, label in zip(digits.images.numpy(), digits.labels.tolist(), strict=True):
            key = content_hash(image)
            assert expected[key] == label
            assert is_held_out(key) == held_out


def test_a_fifth_is_held_out_and_remains_so_when_the_log_grows(mnist: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "log", INVERTED[:250], LABELS[:250])
    before = LoggedDigits.read(tmp_path / "log", mnist)
    write_log(tmp_path / "log", INVERTED[250:], LABELS[250:], first_id=1000)
    after = LoggedDigits.read(tmp_path / "log", mnist)
    assert hashes(before.validation.images) < hashes(after.validation.images)
    assert hashes(before.training.images) < hashes(after.training.images)
    share = len(after.validation) / 500
    assert abs(share - HELD_OUT) < 4 * (HELD_OUT * (1 - HELD_OUT) / 500) ** 0.5


def test_images_of_mnist_are_left_out_and_counted(mnist: Path, tmp_path: Path) -> None:
    parts = (TEST.images[:7], VALIDATION.images[:5], TRAINING.images[:3])
    known = torch.cat(parts).numpy()
    write_log(tmp_path / "log", np.concatenate([known, INVERTED[:20]]), [1] * 35)
    log = LoggedDigits.read(tmp_path / "log", mnist)
    counts = log.counts
    assert (counts.mnist_test, counts.mnist_validation, counts.mnist_training) == (7, 5, 3)
    assert not hashes(log.training.images) & hashes(torch.cat(parts))
    assert not hashes(log.validation.images) & hashes(torch.cat(parts))
    assert "left out: 7 MNIST test images, 5 MNIST validation images, 3 MNIST training images" in str(counts)


def test_equal_images_with_different_labels_are_unlabelled(mnist: Path, tmp_path: Path) -> None:
    learned = [image for image in INVERTED if not is_held_out(content_hash(image))][:2]
    write_log(tmp_path / "log", np.stack([*learned, learned[0]]), [3, 4, 5])
    log = LoggedDigits.read(tmp_path / "log", mnist)
    assert log.counts.contradictory == 1
    assert sorted(log.training.labels.tolist()) == [UNLABELLED, 4]
    assert "1 with contradictory labels" in str(log.counts)


def test_the_hash_depends_on_images_and_labels_but_not_on_files_or_order(mnist: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "one", INVERTED[:40], LABELS[:40])
    write_log(tmp_path / "two", INVERTED[20:40], LABELS[20:40])
    write_log(tmp_path / "two", INVERTED[:20], LABELS[:20], first_id=1000)
    write_log(tmp_path / "other", INVERTED[:40], [*LABELS[:39], -1])
    one, two, other = (LoggedDigits.read(tmp_path / name, mnist) for name in ("one", "two", "other"))
    assert one.sha256 == two.sha256 != other.sha256
    assert torch.equal(one.training.images, two.training.images)
    assert torch.equal(one.training.labels, two.training.labels)


def test_a_log_of_test_digits_alone_is_rejected(mnist: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "log", TEST.images[:9].numpy(), TEST.labels[:9].tolist())
    with pytest.raises(
        DatasetError,
        match=r"none of its 9 images can be learned from .*9 MNIST test images.*log more requests",
    ):
        LoggedDigits.read(tmp_path / "log", mnist)


def test_a_folder_without_a_log_is_named(mnist: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestLogError, match=f"{tmp_path}/nothing"):
        LoggedDigits.read(tmp_path / "nothing", mnist)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "requests-1.parquet").write_bytes(b"no parquet")
    with pytest.raises(RequestLogError, match=r"requests-1\.parquet"):
        LoggedDigits.read(tmp_path / "log", mnist)
