"""The threshold of a cascade: its guarantee, and what `distillery-export cascade` publishes."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from scipy import stats

from distillery import main
from export import ExportError
from export.__main__ import COMMANDS
from export.cascade import (
    Answers,
    Pair,
    allowed_worse,
    choose_threshold,
    trade_off,
    upper_bound,
)
from export.signing import SigningKey
from export.splits import Splits
from serving.model.repository import load_model, load_repository
from serving.model.session import Session
from serving.model.signature import PublicKeys

LOGITS = np.zeros((1, 10), np.float32)


def pair_of(probability: list[float], student: list[int], teacher: list[int]) -> Pair:
    probabilities = np.array(probability)
    return Pair(
        Answers(np.array(student, bool), probabilities, LOGITS),
        Answers(np.array(teacher, bool), probabilities, LOGITS),
    )


def drawn(random: np.random.Generator, digits: int) -> Pair:
    """Digits of a population in which a less sure student is more often wrong: 0.2 * (1 - probability)."""
    probability = random.uniform(0, 1, digits)
    wrong = random.random(digits) < 0.2 * (1 - probability)
    teacher_wrong = random.random(digits) < 0.01
    return Pair(Answers(~wrong, probability, LOGITS), Answers(~teacher_wrong, probability, LOGITS))


def test_the_number_of_worse_digits_is_that_of_the_exact_test() -> None:
    for digits, epsilon in ((5000, 0.001), (5000, 0.0006), (5000, 0.002), (100, 0.05), (1000, 0.2)):
        allowed = allowed_worse(digits, epsilon)
        assert stats.binomtest(allowed, digits, epsilon, "less").pvalue <= 0.05
        assert stats.binomtest(allowed + 1, digits, epsilon, "less").pvalue > 0.05
        assert upper_bound(allowed, digits) <= epsilon < upper_bound(allowed + 1, digits)
    assert allowed_worse(5000, 0.0005) == -1


def test_the_lowest_threshold_escalates_all_but_the_allowed_worse_digits() -> None:
    pair = pair_of(
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        student=[1, 0, 1, 0, 1, 0],
        teacher=[1, 1, 1, 1, 0, 0],  # the last digit is wrong for both, the one before it better
    )
    assert pair.lowest(0) == (0.85, 5, 0, 0)
    assert pair.lowest(1) == (0.65, 3, 1, 0)
    assert pair.lowest(2) == (0.0, 0, 2, 1)


def test_digits_of_one_probability_are_escalated_together() -> None:
    assert pair_of([0.9, 0.9, 0.8], student=[1, 0, 1], teacher=[1, 1, 1]).lowest(0) is None
    assert pair_of([0.9, 0.8, 0.8], student=[1, 1, 0], teacher=[1, 1, 1]).lowest(0) == (0.85, 2, 0, 0)


def test_neighbouring_probabilities_are_separated() -> None:
    pair = pair_of([0.900001, 0.9], student=[1, 0], teacher=[1, 1])
    chosen = pair.lowest(0)
    assert chosen
    assert 0.9 < chosen.threshold <= 0.900001
    assert chosen.escalated == 1


def test_an_epsilon_that_no_threshold_reaches_is_rejected_with_the_smallest_that_one_does() -> None:
    pair = drawn(np.random.default_rng(0), 1000)
    with pytest.raises(
        ExportError, match=r"--epsilon 0.002: no threshold.* is --epsilon ([0-9.]+):"
    ) as caught:
        choose_threshold(pair, 0.002)
    reachable = float(str(caught.value).split("--epsilon ")[-1].split(":")[0])
    assert reachable == pytest.approx(1 - 0.05 ** (1 / 1000), abs=1e-6)
    assert choose_threshold(pair, reachable).worse == 0
    with pytest.raises(ExportError):
        choose_threshold(pair, reachable - 2e-6)


def test_the_guarantee_holds_for_nineteen_of_twenty_draws() -> None:
    """The true P(worse) of a threshold t is 0.99 * 0.2 * (1 - t)^2 / 2; the level is nearly used."""
    random, epsilon, draws = np.random.default_rng(1), 0.02, 2000
    thresholds = np.array([choose_threshold(drawn(random, 500), epsilon).threshold for _ in range(draws)])
    broken = int((0.99 * 0.1 * (1 - thresholds) ** 2 > epsilon).sum())
    assert stats.binomtest(broken, draws, 0.05, "greater").pvalue > 1e-3
    assert broken > 0.01 * draws  # a rule that escalates everything would hold always


def test_a_larger_epsilon_escalates_less() -> None:
    found = trade_off(drawn(np.random.default_rng(2), 2000))
    epsilons, choices = zip(*found, strict=True)
    assert list(epsilons) == sorted(epsilons)
    escalated = [choice.escalated for choice in choices]
    assert escalated == sorted(escalated, reverse=True)
    assert choices[-1].escalated == 0


@pytest.fixture
def repository(model_repository: Path, tmp_path: Path) -> Path:
    return Path(copytree(model_repository, tmp_path / "models"))


def export(*arguments: str) -> int:
    return main("distillery-export", COMMANDS, default="export", arguments=["cascade", *arguments])


def test_the_published_figures_are_those_of_the_rule(cascade_repository: Path, splits: Splits) -> None:
    entries = load_repository(cascade_repository)
    manifest = entries["cascade"].manifest
    rule = manifest.cascade
    assert rule
    for digits, escalated, worse, better in (
        (splits.validation, rule.guarantee.escalated, rule.guarantee.worse, rule.guarantee.better),
        (splits.test, rule.test_escalated, rule.test_worse, rule.test_better),
    ):
        images, labels = digits.images.numpy(), digits.labels.numpy()
        student, teacher = (Session(entries[name].content).run(images) for name in ("student", "teacher"))
        kept = student.probabilities.max(axis=1) >= rule.threshold
        right, teacher_right = np.array(student.digits) == labels, np.array(teacher.digits) == labels
        assert (escalated, worse, better) == (
            int((~kept).sum()),
            int((kept & ~right & teacher_right).sum()),
            int((kept & right & ~teacher_right).sum()),
        )
    assert manifest.test_errors == int((~np.where(kept, right, teacher_right)).sum())
    assert rule.guarantee.worse <= allowed_worse(rule.guarantee.digits, rule.guarantee.epsilon)
    assert rule.guarantee.bound <= rule.guarantee.epsilon


def test_the_card_states_rule_and_guarantee(cascade_repository: Path) -> None:
    entry = load_repository(cascade_repository)["cascade"]
    card, rule = entry.card, entry.manifest.cascade
    assert card
    assert rule
    assert f"digit is below **{rule.threshold:.8g}**" in card
    assert "With 95% probability, the cascade's error rate is at most **5.0000%** above the teacher's" in card
    for member in (rule.student, rule.teacher):
        assert f"`{member}`, SHA-256\n  {member.sha256}" in card


def test_the_command_publishes_a_signed_cascade(
    repository: Path,
    splits: Splits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Splits, "read", lambda _: splits)
    key = SigningKey.generate()
    key.write(tmp_path / "key.pem")
    flags = ["--models-dir", str(repository), "--student", "student-int8", "--epsilon", "0.05"]
    assert export(*flags, "--signing-key", str(tmp_path / "key.pem")) == 0
    output = capsys.readouterr().out
    assert "exported   cascade\n" in output
    assert "chosen" in output
    (tmp_path / "public.pem").write_bytes(key.public_pem())
    entry = load_model(repository / "cascade" / "1", PublicKeys.read(tmp_path / "public.pem"))
    assert entry.manifest.precision == "mixed"
    assert "onnxruntime" not in (repository / "cascade" / "config.pbtxt").read_text()
    assert export(*flags, "--name", "other") == 0
    assert {"cascade", "other"} < set(load_repository(repository))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--student", "fats"], "--student: there is no model 'fats'; known: cascade, student"),
        (["--student", "student/2"], "--student student/2: student has 1, no version 2"),
        (["--student", "teacher"], "the teacher teacher is the student itself"),
        (["--name", "student"], "is a model with a graph; choose another name"),
        (["--name", "../x"], "--name '../x': use lower-case letters and digits"),
        (["--epsilon", "0.001"], "the smallest that one has is --epsilon 0.0"),
        (["--teacher", "cascade"], "--teacher cascade is a cascade, and cascades are not nested"),
    ],
)
def test_what_cannot_be_exported_is_named_with_the_fix(
    repository: Path,
    cascade_repository: Path,
    splits: Splits,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(Splits, "read", lambda _: splits)
    copytree(cascade_repository / "cascade", repository / "cascade")
    before = sorted(repository.rglob("*"))
    assert export("--models-dir", str(repository), "--student", "student-int8", *flags) == 1
    assert message in capsys.readouterr().err
    assert sorted(repository.rglob("*")) == before
