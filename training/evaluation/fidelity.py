"""Fidelity of a student to its teacher, which differs from its accuracy.

The two measures of Stanton, Izmailov, Kirichenko, Alemi and Wilson, "Does Knowledge Distillation Really Work?" (2021,
arXiv:2106.05945). Logits are `float [N, classes]` of the same digits.
"""

from torch import Tensor
from torch.nn import functional


def agreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Return the share of digits for which both predict the same class, right or wrong."""
    return (logits_a.argmax(dim=1) == logits_b.argmax(dim=1)).double().mean().item()


def mean_kl(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Return the mean of KL(teacher ‖ student) at temperature 1, in nats; 0 where their probabilities agree."""
    log_p = functional.log_softmax(teacher_logits.double(), dim=1)
    log_q = functional.log_softmax(student_logits.double(), dim=1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True).item()
