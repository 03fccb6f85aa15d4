"""What a trainer can do before it knows its job."""

from __future__ import annotations

import torch


def warm_up() -> None:
    """Import all a run needs, and take an optimizer step: the first one imports another second's worth."""
    from transformers.models.llama import modeling_llama  # noqa: F401

    from tunesmith_trainer import loop  # noqa: F401

    weight = torch.nn.Parameter(torch.zeros(1, 1))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.zeros(1, 1)
    optimizer.step()
