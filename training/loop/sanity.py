"""Overfit one batch with every network (`--sanity-check`): one that cannot will not learn from more digits."""

from distillery import DistilleryError
from training.data.mnist import Digits
from training.loop.device import Device
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Observer, Training

BATCH = 64
STEPS = 100


def overfit_one_batch(jobs: list[Job], digits: Digits, *, device: Device, observer: Observer) -> None:
    """Train each network for 100 steps on the same 64 digits. Raises `DistilleryError` for an error on one of them.

    A student is distilled from the teacher that was just trained on this batch.
    """
    batch = Digits(digits.images[:BATCH], digits.labels[:BATCH])
    trained_teachers: dict[str, SoftTargets] = {}
    for job in jobs:
        short = job.model.model_copy(update={"epochs": STEPS, "batch_size": BATCH, "leave_out": []})
        shortened = Job(job.name, short, job.seed)
        teacher = trained_teachers[job.distillation.teacher] if job.distillation else None
        training = Training(shortened, batch, batch, device=device, teacher=teacher)
        observer.started(shortened, epochs_done=0)
        while not training.done:
            training.train_epoch(observer)
        trained_teachers[job.name] = SoftTargets(training.network, device)
        last = training.history[-1]
        if last["validation_errors"]:
            raise DistilleryError(
                f"{job.name} misclassifies {last['validation_errors']} of the {len(batch)} digits it was trained on "
                f"for {STEPS} steps (loss {last['loss']:.3f}); try another learning rate than "
                f"{job.model.learning_rate}, less dropout, or less augmentation"
            )
