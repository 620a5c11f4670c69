"""Distillation losses: the cross entropy of the labels, and one of several losses on a teacher's soft targets.

Each is a function and an entry of `SOFT_LOSSES`; a new one also needs its name in `LossName`. Choose one with
`distillery-train --student.distillation.loss dkd`. In the formulas z are the student's logits and v
the teacher's, q and p their softmax at temperature T, N the digits of a batch and C the classes.
"""

from collections.abc import Callable
from typing import TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe.schema import LossName

SoftLoss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""From the student's and the teacher's logits `float [N, C]`, labels `int64 [N]`, temperature and beta to a scalar, the
mean over digits. A parameter with an underscore is not used by that loss."""


class LossSettings(TypedDict):
    """What a loss depends on besides alpha."""

    loss: LossName
    temperature: float
    beta: float


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    loss: LossName = "kl",
    temperature: float,
    alpha: float,
    beta: float = 1,
) -> Tensor:
    """Return `alpha · soft + (1 − alpha) · CE(student, labels)`, the mean over the batch.

    Logits are `float [N, C]`, labels `int64 [N]`; `0 < temperature`, `0 ≤ alpha ≤ 1`, `0 ≤ beta`. `beta` weighs the
    second term of `dkd` and `dist`; `kl`, `mse` and `lskd` have one term and ignore it, as `mse` does `temperature`.
    Every soft loss is zero for equal logits. The teacher's logits receive no gradient.
    """
    if alpha == 0:
        return functional.cross_entropy(student_logits, labels)
    soft = SOFT_LOSSES[loss](student_logits, teacher_logits.detach(), labels, temperature, beta)
    if alpha == 1:
        return soft
    return alpha * soft + (1 - alpha) * functional.cross_entropy(student_logits, labels)


def mixed_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alphas: Tensor,
    **settings: Unpack[LossSettings],
) -> Tensor:
    """Return `distillation_loss` with an alpha for every image, `float [N]`; where it is 1, labels are not used."""
    total = student_logits.new_zeros(())
    for alpha in torch.unique(alphas).tolist():
        rows = alphas == alpha
        part = distillation_loss(
            student_logits[rows], teacher_logits[rows], labels[rows], alpha=round(alpha, 6), **settings
        )
        total = total + rows.float().mean() * part
    return total


def kl(student: Tensor, teacher: Tensor, _labels: Tensor, temperature: float, _beta: float) -> Tensor:
    """Return `T² · KL(p ‖ q)` in nats: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.

    The gradient at a student's logit is `T · (q − p) / N`: the factor T² keeps it of the labels' size at any
    temperature; for T → ∞ the loss becomes the squared difference of the centred logits over 2·C. KL differs from the
    paper's cross entropy by the entropy of p alone, which has no gradient.
    """
    return temperature**2 * _divergence(student / temperature, teacher / temperature)


def mse(student: Tensor, teacher: Tensor, _labels: Tensor, _temperature: float, _beta: float) -> Tensor:
    """Return `‖z − v‖² / 2C`: logit matching, Ba and Caruana 2014, arXiv:1312.6184; Kim et al. 2021, arXiv:2105.08919.

    The logits are not centred: centred, this is `kl` at a high temperature. It exceeds that limit by half the squared
    difference of the logits' means, to which `kl` is invariant; Kim et al. find it better than `kl`. Divided by 2·C it
    has the scale of `kl`, so that one alpha suits both; torch's `mse_loss`, which Kim et al. use, is twice as much.
    """
    return functional.mse_loss(student, teacher) / 2


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, beta: float) -> Tensor:
    """Return `T² · (TCKD + beta · NCKD)`: decoupled distillation, Zhao et al. 2022, arXiv:2203.08679, equation 7.

    TCKD compares the probability of the label with that of all other classes together, NCKD the other classes among
    themselves. `kl` is this with `beta = 1 − p(label)` (equation 6), which suppresses the other classes of a confident
    teacher. A beta of 1 gives them full weight; the authors use 8 for CIFAR-100, and a weight of 1 for TCKD as here.
    """
    student_label, student_others = _decouple(student / temperature, labels)
    teacher_label, teacher_others = _decouple(teacher / temperature, labels)
    tckd = _divergence(student_label, teacher_label)
    nckd = _divergence(student_others, teacher_others)
    return temperature**2 * (tckd + beta * nckd)


def lskd(student: Tensor, teacher: Tensor, _labels: Tensor, temperature: float, _beta: float) -> Tensor:
    """Return `kl` of standardised logits: Sun et al. 2024, arXiv:2403.01427, algorithms 1 and 2.

    Each digit's logits have mean 0 and deviation 1 over the classes before they are divided by T, so the student need
    not match its teacher's scale. Z-scores lie within ±√(C − 1), so a low T softens enough: the authors use 2. The
    deviation is the one over C of algorithm 1; their code and figure 2 divide by C − 1, so their T is √(1 − 1/C) ours.
    """
    # LayerNorm without weights is the z-score; its epsilon of 1e-5 prevents a division by zero for equal logits.
    z_scores = (functional.layer_norm(logits, logits.shape[1:]) for logits in (student, teacher))
    return temperature**2 * _divergence(*(scores / temperature for scores in z_scores))


def dist(student: Tensor, teacher: Tensor, _labels: Tensor, temperature: float, beta: float) -> Tensor:
    """Return `T² · (inter + beta · intra)`: DIST, Huang et al. 2022, arXiv:2205.10536, equations 8 and 9.

    Inter is 1 − Pearson's correlation of q and p over the classes, averaged over digits; intra the same over the
    digits of the batch, averaged over classes; the paper weighs both alike. A correlation does not shrink as T grows,
    so with T² (as in the authors' code) this loss far outweighs the labels at T = 20. Where neither side varies, as in
    a batch of one, the distance is 0; where only one of them does, it is 1/2.
    """
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return temperature**2 * (_pearson_distance(q, p, over=1) + beta * _pearson_distance(q, p, over=0))


SOFT_LOSSES: dict[LossName, SoftLoss] = {"kl": kl, "mse": mse, "dkd": dkd, "lskd": lskd, "dist": dist}
"""Every loss on soft targets by its name in a recipe."""


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) in nats."""
    log_q, log_p = functional.log_softmax(student, dim=1), functional.log_softmax(teacher, dim=1)
    # "batchmean": the mean over digits; plain "mean" would divide by the ten classes too.
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits whose softmax is (label, all others) `[N, 2]`, and those of the others alone `[N, C − 1]`."""
    classes = logits.shape[1]
    # Classes in cyclic order from the label on: a boolean mask would make a GPU synchronise to count what it selects.
    order = (labels.unsqueeze(1) + torch.arange(classes, device=labels.device)) % classes
    label, others = logits.gather(1, order).tensor_split([1], dim=1)
    return torch.cat([label, others.logsumexp(1, keepdim=True)], dim=1), others


def _pearson_distance(a: Tensor, b: Tensor, *, over: int) -> Tensor:
    """1 − correlation as ½‖â − b̂‖² of the centred unit vectors: the same, but exact where they agree."""
    unit_a, unit_b = (
        functional.normalize(x - x.mean(over, keepdim=True), dim=over, eps=1e-8) for x in (a, b)
    )
    return (unit_a - unit_b).square().sum(over).mean() / 2
