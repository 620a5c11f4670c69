"""Can a network learn one batch by heart? If it cannot, nothing longer will help: `--sanity-check`."""

from distillery import DistilleryError
from training.data import Digits
from training.device import Device
from training.loop import Job, Observer, Training
from training.network import MLP

BATCH = 64
STEPS = 100


def overfit_one_batch(jobs: list[Job], digits: Digits, *, device: Device, observer: Observer) -> None:
    """Train each network for 100 steps on the same 64 digits. Raises `DistilleryError` if it errs on one.

    A distilled student learns from the teacher that has just learnt this batch.
    """
    batch = Digits(digits.images[:BATCH], digits.labels[:BATCH])
    teacher: MLP | None = None
    for job in jobs:
        shortened = Job(
            job.name,
            job.network.model_copy(update={"epochs": STEPS, "batch_size": BATCH}),
            job.seed,
            job.distillation,
        )
        training = Training(
            shortened, batch, batch, device=device, teacher=teacher if job.distillation else None
        )
        observer.started(shortened, epochs_done=0)
        while not training.done:
            training.train_epoch(observer)
        teacher = teacher or training.network
        last = training.history[-1]
        if last["validation_errors"]:
            raise DistilleryError(
                f"{job.name} errs on {last['validation_errors']} of the {len(batch)} digits it was trained on for "
                f"{STEPS} steps (loss {last['loss']:.3f}); try another learning rate than "
                f"{job.network.learning_rate}, less dropout, or less augmentation"
            )
