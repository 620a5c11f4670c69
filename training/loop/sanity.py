"""Can a network learn one batch by heart? If it cannot, nothing longer will help: `--sanity-check`."""

from distillery import DistilleryError
from training.data.mnist import Digits
from training.loop.device import Device
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Observer, Training

BATCH = 64
STEPS = 100


def overfit_one_batch(jobs: list[Job], digits: Digits, *, device: Device, observer: Observer) -> None:
    """Train each network for 100 steps on the same 64 digits. Raises `DistilleryError` if it errs on one.

    A distilled student learns from the teacher that has just learnt this batch.
    """
    batch = Digits(digits.images[:BATCH], digits.labels[:BATCH])
    learnt: dict[str, SoftTargets] = {}
    for job in jobs:
        short = job.model.model_copy(update={"epochs": STEPS, "batch_size": BATCH, "leave_out": []})
        shortened = Job(job.name, short, job.seed)
        teacher = learnt[job.distillation.teacher] if job.distillation else None
        training = Training(shortened, batch, batch, device=device, teacher=teacher)
        observer.started(shortened, epochs_done=0)
        while not training.done:
            training.train_epoch(observer)
        learnt[job.name] = SoftTargets(training.network, device)
        last = training.history[-1]
        if last["validation_errors"]:
            raise DistilleryError(
                f"{job.name} errs on {last['validation_errors']} of the {len(batch)} digits it was trained on for "
                f"{STEPS} steps (loss {last['loss']:.3f}); try another learning rate than "
                f"{job.model.learning_rate}, less dropout, or less augmentation"
            )
