"""The model card of a cascade."""

from serving.model.repository import Manifest

_CARD = """# {name}

A cascade: `{student}` predicts every image, and `{teacher}` those that `{student}` is not sure of.
An image is escalated if the probability of the student's digit is below **{threshold:.8g}**. Its digit, its
probabilities, its confidence and whether it is accepted are then the teacher's.

| | model | layers | precision | errors of {images:,} test digits |
| --- | --- | --- | --- | --: |
{models}

| | validation digits, which chose the threshold | test digits, which chose nothing |
| --- | --: | --: |
{results}

Worse: the student's digit is wrong, is not escalated, and the teacher is right. Better: the other way round.

## Guarantee

With {probability:.0%} probability, the cascade's error rate is at most **{epsilon:.4%}** above the teacher's:
{errors:.3g} errors of 10,000 images. The threshold is the lowest one for which Learn then Test (Angelopoulos et al.
2021, arXiv:2110.01052) certifies this on {digits:,} validation digits; the bound that follows from these is
{bound:.4%}.

- The probability is that of drawing these validation digits. The statement is about images like them: digits as in
  MNIST's training file, which neither network was trained on. Of other pictures it states nothing.
- A training that keeps the epoch with the fewest validation errors gives these digits a small part in the weights,
  which the probability leaves out. The test digits have none: of images like these, at most {test_bound:.4%} are
  worse, with the same probability.
- It holds for two files, and a service does not start with others: `{student}/{student_version}`, SHA-256
  {student_sha256}, and `{teacher}/{teacher_version}`, SHA-256
  {teacher_sha256}.
"""


def cascade_card(manifest: Manifest, student: Manifest, teacher: Manifest, test_bound: float) -> str:
    """Return the card in Markdown; `test_bound` is the bound on `worse` that the test digits give."""
    rule, images = manifest.cascade, manifest.parity.images
    assert rule  # noqa: S101 - of a cascade
    promise = rule.guarantee
    models = (
        f"| {role} | `{each.name}/{each.version}` | {each.architecture} | {each.precision} | {each.test_errors:,} |"
        for role, each in (("student", student), ("teacher", teacher), ("cascade", manifest))
    )
    results = (
        f"| {label} | {found:,} of {promise.digits:,} ({found / promise.digits:.2%}) "
        f"| {tested:,} of {images:,} ({tested / images:.2%}) |"
        for label, found, tested in (
            ("escalated", promise.escalated, rule.test_escalated),
            ("worse than the teacher", promise.worse, rule.test_worse),
            ("better than the teacher", promise.better, rule.test_better),
        )
    )
    return _CARD.format(
        name=manifest.name,
        student=student.name,
        student_version=student.version,
        student_sha256=student.sha256,
        teacher=teacher.name,
        teacher_version=teacher.version,
        teacher_sha256=teacher.sha256,
        threshold=rule.threshold,
        images=images,
        models="\n".join(models),
        results="\n".join(results),
        probability=promise.probability,
        epsilon=promise.epsilon,
        errors=promise.epsilon * 10_000,
        digits=promise.digits,
        bound=promise.bound,
        test_bound=test_bound,
    )
