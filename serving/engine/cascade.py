"""A cascade: the student's executor runs every image, the teacher's those that the student is not sure of.

    submit ──▶ queue of the student ──▶ run ─┬─ none escalated ─────────────────────────────▶ waiter
                                             └─ some escalated ──▶ queue of the teacher ──▶ run ──▶ merged ──▶ waiter

Both executors are those of the models themselves, so that a cascade shares their batches: with requests to the models
under their own names, and the images that several requests escalate with each other. A request without an escalated
image is answered after the student's run. One that ends meanwhile, because its deadline passes or its client hangs up,
is skipped by either queue as any other is.
"""

from collections.abc import Sequence

import numpy as np

from serving.codecs.base import Prediction
from serving.engine.batching import Waiter
from serving.engine.executors import Executor
from serving.engine.lit_api import DigitAPI
from serving.model.tensors import Images

_IMAGES = 1000
"""Images that the estimate of the escalated share goes back."""


class CascadeExecutor:
    """Runs a cascade by the executors of its two models."""

    def __init__(self, api: DigitAPI, student: Executor, teacher: Executor) -> None:
        """Apply the rule of the manifest of `api`, whose `latest_run` is kept up to date."""
        rule = api.entry.manifest.cascade
        assert rule  # noqa: S101 - of a cascade
        self._api = api
        self._student = student
        self._teacher = teacher
        self._threshold = rule.threshold
        self._share = rule.guarantee.escalated_share

    def submit(self, images: Images, waiter: Waiter) -> None:
        self._student.submit(images, _FirstStage(self, images, waiter))

    def seconds(self, count: int) -> float:
        """Return the expected duration, with a run of the teacher for each image expected to be escalated."""
        return self._student.seconds(count) + self._share * count * self._teacher.seconds(1)

    def longest_run(self) -> float:
        return max(self._student.longest_run(), self._teacher.longest_run())

    def queued(self) -> int:
        """Return 0: requests wait in the queues of the two models, which count them."""
        return 0

    def runs_inline(self, count: int) -> bool:
        return self._student.runs_inline(count) and self._teacher.runs_inline(count)

    def student_predicted(self, images: Images, prediction: Prediction, waiter: Waiter) -> None:
        """Deliver the student's prediction, or submit the images that it is not sure of to the teacher."""
        count = len(images)
        escalated = [share < self._threshold for share in prediction.probabilities.max(axis=1).tolist()]
        chosen = [index for index, teachers in enumerate(escalated) if teachers]
        self._share += (len(chosen) / count - self._share) * min(1.0, count / _IMAGES)
        prediction = prediction._replace(escalated=escalated)
        if chosen:
            asked = images if len(chosen) == count else images[chosen]
            self._teacher.submit(asked, _SecondStage(self, images, prediction, chosen, waiter))
        else:
            self.deliver(images, prediction, waiter)

    def deliver(self, images: Images, prediction: Prediction, waiter: Waiter) -> None:
        """Deliver the prediction for all images of a request."""
        self._api.latest_run = images, prediction
        waiter.set_result(prediction)


class _Stage:
    """What waits for one of the two runs on behalf of a request; it is over when the request is."""

    __slots__ = ("_cascade", "_images", "_waiter", "client")

    def __init__(self, cascade: CascadeExecutor, images: Images, waiter: Waiter) -> None:
        self._cascade = cascade
        self._images = images
        self._waiter = waiter
        self.client: str | None = getattr(waiter, "client", None)
        """Takes turns in the queues (`serving.engine.admission.fairness`)."""

    def done(self) -> bool:
        return self._waiter.done()

    def set_exception(self, error: BaseException) -> None:
        self._waiter.set_exception(error)


class _FirstStage(_Stage):
    __slots__ = ()

    def set_result(self, prediction: Prediction) -> None:
        self._cascade.student_predicted(self._images, prediction, self._waiter)


class _SecondStage(_Stage):
    __slots__ = ("_chosen", "_first")

    def __init__(
        self,
        cascade: CascadeExecutor,
        images: Images,
        first: Prediction,
        chosen: Sequence[int],
        waiter: Waiter,
    ) -> None:
        super().__init__(cascade, images, waiter)
        self._first = first
        self._chosen = chosen

    def set_result(self, prediction: Prediction) -> None:
        merged = merge(self._first, prediction, self._chosen)
        self._cascade.deliver(self._images, merged, self._waiter)


def merge(student: Prediction, teacher: Prediction, chosen: Sequence[int]) -> Prediction:
    """Return the student's prediction with the teacher's for the images `chosen`.

    The times are those of one run as long as both, ending with the teacher's: the time between the two counts as queue
    wait, like that before the first.
    """
    started = teacher.started - (student.finished - student.started)
    if len(chosen) == len(student.digits):
        return teacher._replace(started=started, escalated=student.escalated)
    # `check_cascade` requires an acceptance rule of both.
    assert student.confidence is not None  # noqa: S101
    assert student.accepted is not None  # noqa: S101
    assert teacher.confidence is not None  # noqa: S101
    assert teacher.accepted is not None  # noqa: S101
    digits, confidence, accepted = list(student.digits), list(student.confidence), list(student.accepted)
    for place, index in enumerate(chosen):
        digits[index] = teacher.digits[place]
        confidence[index] = teacher.confidence[place]
        accepted[index] = teacher.accepted[place]
    logits, probabilities = student.logits.copy(), student.probabilities.copy()  # views of the whole run's
    places = np.asarray(chosen)
    logits[places], probabilities[places] = teacher.logits, teacher.probabilities
    return Prediction(
        digits,
        logits,
        probabilities,
        started,
        teacher.finished,
        confidence,
        accepted,
        student.escalated,
    )
