"""A cascade of two exported models: a threshold with a statistical guarantee, and its entry in the repository.

    escalated = probability of the student's digit < threshold     the teacher predicts
    worse     = not escalated, student wrong, teacher right        a digit that the cascade costs

A digit of the cascade that is not escalated may also be right where the teacher is wrong, so

    P(cascade wrong) - P(teacher wrong) = P(worse) - P(better) <= P(worse)

and P(worse) <= epsilon is what is guaranteed. For each threshold, P(worse) > epsilon is a null hypothesis; its exact
p-value is the probability of as few `worse` digits among n, or fewer, under Binomial(n, epsilon). Thresholds are tested
from the one that escalates all digits downwards, each at level 1 - probability, until the first that is not rejected;
the last rejected one is chosen (Learn then Test with fixed-sequence testing: Angelopoulos, Bates, Candès, Jordan, Lei
2021, arXiv:2110.01052). Since P(worse) does not increase with the threshold, no grid is needed: every threshold is a
candidate (Bates, Angelopoulos, Lei, Malik, Jordan 2021, arXiv:2101.02703, theorem 1).

Holds for the two files given, whose weights must not depend on the validation digits. `better` is left out, because it
would not help: for up to nine digits of each kind among 5,000, an exact test of the difference P(worse) - P(better),
over a confidence set for P(better) (Berger and Boos 1994), certifies a larger epsilon than that of P(worse) alone.
"""

from importlib.metadata import version as version_of
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy  # loads scipy.stats at its first use
from numpy.typing import NDArray

from distillery.files import sha256
from export import ExportError
from export.cascade_card import cascade_card
from export.publish import publish_files
from export.signing import SigningKey
from export.splits import Splits
from serving.model.cascade import Cascade, Guarantee, Member
from serving.model.repository import CARD_FILE, INPUTS, OUTPUTS, Manifest, ModelEntry, Parity
from serving.model.session import Session
from serving.model.tensors import Images, Scores
from training.data.mnist import Digits

PROBABILITY = 0.95
EPSILON = 0.001
"""Ten errors of 10,000 digits; with 5,000 validation digits, one may be worse."""
BATCH = 256

Mask = NDArray[np.bool_]


class Answers(NamedTuple):
    """What one model predicts for N labelled digits."""

    correct: Mask  # N
    probability: NDArray[np.float64]  # N, of the predicted digit
    logits: Scores  # [N, 10]

    @classmethod
    def of(cls, entry: ModelEntry, digits: Digits) -> "Answers":
        """Predict `digits`. Raises `ExportError` for a model without confidence."""
        session = Session(entry.content)
        images: Images = digits.images.numpy()
        runs = [session.run_graph(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        found = session.outputs_of(runs)
        if found.confidence is None:
            raise ExportError(f"{entry.name} was exported without confidence; export it again")
        probability = found.probabilities.max(axis=1).astype(np.float64)
        return cls(found.digits == digits.labels.numpy(), probability, found.logits)


class Choice(NamedTuple):
    """A threshold, and its results on the digits that chose it."""

    threshold: float
    escalated: int
    worse: int
    better: int


class Pair(NamedTuple):
    """Student and teacher on the same N digits."""

    student: Answers
    teacher: Answers

    @classmethod
    def of(cls, student: ModelEntry, teacher: ModelEntry, digits: Digits) -> "Pair":
        """Predict `digits` with both. Raises `ExportError` for a model without confidence."""
        return cls(Answers.of(student, digits), Answers.of(teacher, digits))

    @property
    def digits(self) -> int:
        """N."""
        return len(self.student.correct)

    def at(self, threshold: float) -> Choice:
        """Return the results of a threshold."""
        kept = self.student.probability >= threshold
        right, teacher_right = self.student.correct, self.teacher.correct
        return Choice(
            threshold,
            int((~kept).sum()),
            int((kept & ~right & teacher_right).sum()),
            int((kept & right & ~teacher_right).sum()),
        )

    def lowest(self, allowed: int) -> Choice | None:
        """Return the lowest threshold with at most `allowed` worse digits; None if it would escalate every digit.

        It lies halfway between two probabilities, so that rounding on another machine does not move a digit across it.
        """
        probabilities = self.student.probability
        worse = np.sort(probabilities[~self.student.correct & self.teacher.correct])[::-1]
        if len(worse) <= allowed:
            return self.at(0.0)
        too_low = worse[allowed]
        above = probabilities[probabilities > too_low]
        if not len(above):
            return None
        middle = float(too_low + above.min()) / 2
        rounded = round(middle, 6)
        return self.at(rounded if too_low < rounded <= above.min() else middle)


def allowed_worse(digits: int, epsilon: float, probability: float = PROBABILITY) -> int:
    """Return the largest number of worse digits among `digits` that rejects P(worse) > epsilon; -1 if none does."""
    counts = np.arange(int(digits * epsilon) + 1)
    p_values = scipy.stats.binom.cdf(counts, digits, epsilon)
    return int((p_values <= 1 - probability).sum()) - 1


def upper_bound(worse: int, digits: int, probability: float = PROBABILITY) -> float:
    """Return the smallest epsilon that `worse` of `digits` reject (Clopper and Pearson 1934)."""
    return float(scipy.stats.beta.ppf(probability, worse + 1, digits - worse)) if worse < digits else 1.0


def choose_threshold(pair: Pair, epsilon: float, probability: float = PROBABILITY) -> Choice:
    """Return the lowest threshold with the guarantee. Raises `ExportError` with the smallest epsilon that has one."""
    allowed = allowed_worse(pair.digits, epsilon, probability)
    if allowed >= 0 and (chosen := pair.lowest(allowed)):
        return chosen
    reachable = next(
        (upper_bound(worse, pair.digits, probability) for worse in range(pair.digits) if pair.lowest(worse)),
        None,
    )
    assert reachable is not None  # noqa: S101 - with all worse digits allowed, the threshold is 0
    rounded = float(np.ceil(reachable * 1e6) / 1e6)
    raise ExportError(
        f"--epsilon {epsilon:g}: no threshold, unless it escalates every image, has that guarantee with "
        f"{probability:.0%} probability on {pair.digits:,} validation digits; the smallest that one has is "
        f"--epsilon {rounded:g}: choose that, or another student"
    )


def trade_off(pair: Pair, probability: float = PROBABILITY) -> list[tuple[float, Choice]]:
    """Return thresholds by the epsilon that they guarantee, the smallest first: one for each number of worse digits."""
    found = []
    for allowed in range(pair.digits):
        if choice := pair.lowest(allowed):
            found.append((upper_bound(choice.worse, pair.digits, probability), choice))
            if not choice.threshold:
                break
    return found


class Exported(NamedTuple):
    """A published cascade, and what was chosen from."""

    entry: ModelEntry
    validation: Pair
    choice: Choice


def export_cascade(
    student: ModelEntry,
    teacher: ModelEntry,
    splits: Splits,
    *,
    models_dir: Path,
    name: str = "cascade",
    version: int = 1,
    epsilon: float = EPSILON,
    key: SigningKey | None = None,
) -> Exported:
    """Choose the threshold on the validation digits, read the test digits, and publish the cascade; `key` signs it.

    Raises `ExportError` if no threshold has the guarantee.
    """
    if student.manifest.sha256 == teacher.manifest.sha256:
        raise ExportError(f"the teacher {teacher.name} is the student itself; name a more accurate model")
    pair = Pair.of(student, teacher, splits.validation)
    choice = choose_threshold(pair, epsilon)
    test = Pair.of(student, teacher, splits.test)
    manifest = _manifest(
        name, version, (student.manifest, teacher.manifest), epsilon, choice, pair.digits, test
    )
    test_bound = upper_bound(test.at(choice.threshold).worse, test.digits)
    card = cascade_card(manifest, student.manifest, teacher.manifest, test_bound)
    entry = publish_files(models_dir, manifest, {CARD_FILE: card.encode()}, key)
    return Exported(entry, pair, choice)


def _manifest(
    name: str,
    version: int,
    models: tuple[Manifest, Manifest],
    epsilon: float,
    choice: Choice,
    validation: int,
    test: Pair,
) -> Manifest:
    """Return the manifest of the cascade; `validation` is the number of digits that chose its threshold."""
    members = [Member(name=each.name, version=each.version, sha256=each.sha256) for each in models]
    tested = test.at(choice.threshold)
    rule = Cascade(
        student=members[0],
        teacher=members[1],
        threshold=choice.threshold,
        guarantee=Guarantee(
            method="learn-then-test",
            epsilon=epsilon,
            probability=PROBABILITY,
            digits=validation,
            escalated=choice.escalated,
            worse=choice.worse,
            better=choice.better,
            bound=round(upper_bound(choice.worse, validation), 6),
        ),
        test_escalated=tested.escalated,
        test_worse=tested.worse,
        test_better=tested.better,
    )
    first, second = models
    errors = int((~test.teacher.correct).sum()) + tested.worse - tested.better
    return Manifest(
        name=name,
        version=str(version),
        sha256=sha256(rule.model_dump_json(include={"student", "teacher", "threshold"}).encode()),
        size_bytes=first.size_bytes + second.size_bytes,
        inputs=INPUTS,
        outputs=OUTPUTS,
        opset=first.opset,
        precision=first.precision if first.precision == second.precision else "mixed",
        architecture=f"{first.architecture} → {second.architecture}",
        parameters=first.parameters + second.parameters,
        test_errors=errors,
        test_accuracy=round(1 - errors / test.digits, 6),
        parity=_parity(test, choice.threshold),
        cascade=rule,
        checkpoint_sha256=first.checkpoint_sha256,
        recipe=first.recipe,
        dataset=first.dataset,
        tools={tool: version_of(tool) for tool in ("distillery", "onnxruntime")},
    )


def _parity(test: Pair, threshold: float) -> Parity:
    """Compare the cascade with its teacher: images that are not escalated may differ."""
    kept = test.student.probability >= threshold
    own, others = test.student.logits, test.teacher.logits
    differences = np.abs(own - others).max(axis=1) / np.maximum(np.abs(others).max(axis=1), 1)
    return Parity(
        images=test.digits,
        disagreements=int((kept & (own.argmax(axis=1) != others.argmax(axis=1))).sum()),
        largest_difference=float(differences[kept].max(initial=0)),
    )
