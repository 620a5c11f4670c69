"""Agreement with the teacher on live traffic: a sample of the images that a model classifies, off the request path.

Once per interval, one image of the model's latest run is classified by the teacher as well, on the thread for long
runs, and the two digits are compared. The teacher's runs are those of its session: no request, batch or metric of the
teacher contains them. The image is kept until then, and no longer.
"""

import time
from concurrent.futures import Executor, Future

from serving.engine.lit_api import DigitAPI
from serving.engine.metrics.series import COMPARISONS, TEACHER_COMPARISONS, Values
from serving.engine.request_log import Latest, RequestLog
from serving.model.tensors import Images


class Agreement:
    """Compares one model with the teacher, both of which run in this process."""

    def __init__(
        self,
        teacher: DigitAPI,
        student: DigitAPI,
        row: Values,
        slot: str,
        thread: Executor,
        samples_per_second: float,
        log: RequestLog | None = None,
    ) -> None:
        """`slot` is the student's; with `log`, the latest requests are compared, and what differs is logged."""
        self._slot, self._log = slot, log
        self._teacher = teacher
        self._student = student
        self._counts = dict(
            zip(
                (True, False),
                (row.of(TEACHER_COMPARISONS, slot=slot, agrees=agrees) for agrees in COMPARISONS),
                strict=True,
            )
        )
        self._thread = thread
        self._interval = 1 / samples_per_second
        self._due = 0.0
        self._comparison: Future[None] | None = None

    def publish(self) -> None:
        """Start a comparison if one is due and the model has classified an image since the last one."""
        now = time.monotonic()
        if now < self._due or (self._comparison and not self._comparison.done()):  # it is busy with long runs
            return
        latest = self._log.take_latest(self._slot) if self._log else None
        if latest:
            images, prediction = latest.images, latest.prediction
        elif self._log or self._student.latest_run is None:
            return
        else:
            images, prediction = self._student.latest_run
        self._due = now + self._interval
        self._student.latest_run = None
        self._comparison = self._thread.submit(self._compare, images[:1], prediction.digits[0], latest)

    def _compare(self, image: Images, digit: int, latest: Latest | None) -> None:
        teacher_digit = self._teacher.session.run(image).digits[0]
        counts = self._counts[teacher_digit == digit]
        counts += 1
        if self._log and latest:
            self._log.compared(latest, teacher_digit)
