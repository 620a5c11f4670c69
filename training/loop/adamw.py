"""AdamW without torch's compiler, whose import takes longer than the training of a small network.

torch.optim decorates its methods for torch.compile, and the decorators import the compiler at their first call: 2 to
3 s of CPU time in every process that trains. Nothing is compiled here, so the methods are used without them.
"""

from inspect import unwrap

import torch


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose methods are not decorated for torch.compile."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
