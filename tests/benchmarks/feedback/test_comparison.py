"""A candidate and the stable model on a log: changes, errors, the exact test."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.feedback.comparison import Predict, Predicted, compare, interval
from benchmarks.load.digits import load_digits
from distillery.request_log.distinct import content_hash, is_held_out
from distillery.request_log.read import read_log
from serving.model.tensors import Images
from tests.support.logged_images import write_log

DIGITS = load_digits()
LABELS = [number % 10 for number in range(100)]
PLACE = {content_hash(image): number for number, image in enumerate(DIGITS)}


def model(wrong: set[int], to: int = 1) -> Predict:
    """A model that is wrong on these of the 100 digits: it predicts the label plus `to`."""

    def predict(images: Images) -> Predicted:
        places = [PLACE[content_hash(image)] for image in images]
        digits = np.array([(LABELS[place] + to * (place in wrong)) % 10 for place in places])
        return Predicted(digits, np.ones(len(images), np.bool_))

    return predict


def test_errors_changes_and_the_exact_test_are_those_of_the_two_models(tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS, LABELS)
    found = compare(read_log(tmp_path), model({2, 5}), model({2, *range(10, 22)}), held_out=False)
    assert found["changes"]["images"] == 13
    assert found["changes"]["share"] == 0.13
    assert found["changes"]["accepted_by_both"] == 13
    accuracy = found["accuracy"]
    assert (accuracy["stable"]["errors"], accuracy["candidate"]["errors"]) == (2, 13)
    assert (accuracy["only_stable_wrong"], accuracy["only_candidate_wrong"]) == (1, 12)
    assert accuracy["p"] == pytest.approx(binomtest(1, 13).pvalue)
    worst = accuracy["worse_confusions"][0]
    assert (worst["label"], worst["prediction"], worst["stable"], worst["candidate"]) in {
        (0, 1, 0, 2),
        (1, 2, 0, 2),
    }
    low, high = accuracy["candidate"]["interval_95"]
    assert low < 0.87 < high


def test_equal_images_count_once_and_the_traffic_is_estimated_from_all(tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS[:10], LABELS[:10], rate=0.1)  # ten images that stand for a hundred
    write_log(tmp_path, DIGITS[10:20], LABELS[10:20], first_id=100)  # all that there were
    write_log(tmp_path, DIGITS[10:20], LABELS[10:20], first_id=200)
    changed = set(range(10, 15))
    found = compare(read_log(tmp_path), model(set()), model(changed), held_out=False)
    assert (found["rows"], found["images"], found["accuracy"]["images"]) == (30, 20, 20)
    assert found["changes"]["share"] == 0.25
    assert found["changes"]["share_of_traffic"] == pytest.approx(10 / 120, abs=1e-5)


def test_only_held_out_images_count_if_a_model_has_learned_from_a_log(tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS, LABELS)
    held_out = [number for number, image in enumerate(DIGITS) if is_held_out(content_hash(image))]
    wrong = {held_out[0], *(set(range(100)) - set(held_out))}
    found = compare(read_log(tmp_path), model(wrong), model(set()), held_out=True)
    assert found["accuracy"]["images"] == len(held_out)
    assert found["accuracy"]["stable"]["errors"] == 1
    assert found["changes"]["images"] == len(wrong)  # of all images


def test_a_log_without_labels_shows_changes_only(tmp_path: Path) -> None:
    write_log(tmp_path, DIGITS)
    found = compare(read_log(tmp_path), model({1}), model({2}), held_out=False)
    assert found["accuracy"] is None
    assert found["changes"]["images"] == 2


def test_the_interval_is_the_exact_one() -> None:
    assert interval(0, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)  # 0.025 ** (1 / 10)
    assert interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
