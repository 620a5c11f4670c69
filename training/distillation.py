"""The distillation loss of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015)."""

from torch import Tensor
from torch.nn import functional


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """Return `alpha · T² · KL(p ‖ q) + (1 − alpha) · CE(student, labels)`, averaged over the batch.

    `p` and `q` are the softmax of the teacher's and the student's logits, each divided by the temperature T.
    The gradient of the soft part at a student's logit is `alpha · T · (q − p) / N`: the factor T² keeps it of
    the labels' size at any temperature (section 2 of the paper; for T → ∞ it becomes the squared difference of
    the centred logits over 2·10). KL differs from the paper's cross entropy by the entropy of `p` alone, which
    has no gradient, and is zero where student and teacher agree.

    Logits are `float [N, classes]`, labels `int64 [N]`; `0 < temperature`, `0 ≤ alpha ≤ 1`; the result is a
    scalar in nats. The teacher's logits receive no gradient.
    """
    log_q = functional.log_softmax(student_logits / temperature, dim=1)
    log_p = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    # "batchmean": the mean over digits; plain "mean" would divide by the ten classes too.
    soft = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
    hard = functional.cross_entropy(student_logits, labels)
    return alpha * soft + (1 - alpha) * hard
