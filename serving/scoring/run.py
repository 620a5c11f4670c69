"""A run of bulk scoring: find the inputs, skip the parts that are done, score the others, report what is missing."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from distillery import DistilleryError, unknown
from distillery.machine import usable_cores
from serving.codecs.base import BodyLimits
from serving.model.repository import ModelEntry, default_model, load_repository
from serving.model.signature import PublicKeys
from serving.scoring.config import ScoringSettings
from serving.scoring.inputs.base import Input, Part
from serving.scoring.inputs.find import find_inputs
from serving.scoring.output import Done, Output
from serving.scoring.processes import Lost, Progress, Update, score_parts
from serving.scoring.progress import ScoringProgress
from serving.scoring.score import Scorer


class ScoringError(DistilleryError):
    """A run that is complete except for what the message names."""


def score(settings: ScoringSettings) -> None:
    """Score all inputs. Raises `DistilleryError`: before the work, or after it for what could not be read."""
    entry = _model(settings)
    inputs = find_inputs(settings.inputs, settings.column)
    manifest = entry.manifest
    output = Output(
        settings.out,
        {
            "model": manifest.name,
            "version": manifest.version,
            "sha256": manifest.sha256,
            "part_items": settings.part_items,
            "max_body_bytes": settings.max_body_bytes,
            "max_pixels": settings.max_pixels,
        },
    )
    limits = BodyLimits(1, settings.max_pixels, settings.max_body_bytes)
    scorer = Scorer(entry, limits)
    incomplete: list[str] = []
    finished: list[Done] = []
    with output.locked(), ScoringProgress(sum(each.stamp.size for each in inputs)) as progress:
        output.begin(inputs)
        parts = _missing(inputs, output, settings.part_items, finished, progress)
        with _scoring(settings, parts, scorer, output) as updates:
            for update in updates:
                match update:
                    case Progress(scored, rejected):
                        progress.advance(scored, rejected)
                    case Done():
                        finished.append(update)
                        progress.finished(update.part.size)
                    case Lost(part, reason):
                        incomplete.append(
                            f"{part.input.path}, items {part.first:,} to {part.stop - 1:,}: {reason}"
                        )
    print(_summary(settings, entry, finished, progress))
    incomplete += [f"{done.part.input.path}: {done.unreadable}" for done in finished if done.unreadable]
    if incomplete:
        raise ScoringError(
            "not everything could be read:" + "".join(f"\n  {line}" for line in incomplete[:20])
        )


def _model(settings: ScoringSettings) -> ModelEntry:
    keys = PublicKeys.read(settings.public_key) if settings.public_key else None
    entries = load_repository(settings.models_dir, keys)
    name = settings.model or default_model(entries)
    if name not in entries:
        raise DistilleryError(f"--model: {unknown('model', name, entries)}")
    if rule := entries[name].manifest.cascade:
        raise DistilleryError(
            f"--model: {name} is a cascade, which only the service runs; score with {rule.student.name} or "
            f"{rule.teacher.name}"
        )
    return entries[name]


@contextmanager
def _scoring(
    settings: ScoringSettings, parts: Iterable[Part], scorer: Scorer, output: Output
) -> Iterator[Iterable[Update]]:
    """Yield the updates of the engine. Raises `DistilleryError`."""
    if settings.engine == "local":
        processes = usable_cores() if settings.processes is None else settings.processes
        with closing(score_parts(parts, scorer, output, processes)) as updates:
            yield updates
        return
    from serving.scoring.ray_data import ray_cluster, score_parts_on_ray  # noqa: PLC0415 - seconds

    with (
        ray_cluster(settings.ray_address, settings.processes) as actors,
        closing(score_parts_on_ray(parts, scorer, output, actors)) as updates,
    ):
        yield updates


def _missing(
    inputs: Iterable[Input],
    output: Output,
    items: int | None,
    finished: list[Done],
    progress: ScoringProgress,
) -> Iterator[Part]:
    """Yield the parts to score, and add those that are done to `finished`."""
    for each in inputs:
        for part in each.parts(items or each.part_items):
            if (done := output.done(part)) is None:
                yield part
            else:
                finished.append(done)
                progress.finished(part.size)


def _summary(
    settings: ScoringSettings, entry: ModelEntry, finished: list[Done], progress: ScoringProgress
) -> str:
    predicted, rejected = (
        sum(getattr(done, name) for done in finished) for name in ("predicted", "rejected")
    )
    earlier = f", {predicted - progress.scored:,} of them before" if predicted > progress.scored else ""
    aside = f", {rejected:,} items set aside in {settings.out / 'rejected'}" if rejected else ""
    return (
        f"{predicted:,} images in {settings.out / 'predictions'}{earlier}{aside}: "
        f"{entry.name}/{entry.manifest.version}, {progress.text}"
    )
