"""Agreement with the teacher on live traffic: a sample of the images that a model classifies, off the request path.

Once per interval, one image of the model's latest run is classified by the teacher as well, on the thread for long
runs, and the two digits are compared. The teacher's runs are those of its session: no request, batch or metric of the
teacher contains them. The image is kept until then, and no longer.
"""

import time
from concurrent.futures import Executor, Future

from serving.engine.lit_api import DigitAPI
from serving.engine.metrics.series import COMPARISONS, TEACHER_COMPARISONS, Values
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
    ) -> None:
        """`slot` is the student's."""
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
        if now < self._due or (latest := self._student.latest_run) is None:
            return
        if self._comparison and not self._comparison.done():  # the thread is busy with long runs
            return
        self._due = now + self._interval
        self._student.latest_run = None
        images, prediction = latest
        self._comparison = self._thread.submit(self._compare, images[:1], prediction.digits[0])

    def _compare(self, image: Images, digit: int) -> None:
        counts = self._counts[self._teacher.session.run(image).digits[0] == digit]
        counts += 1
