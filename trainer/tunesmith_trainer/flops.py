"""How much computing a step is, and how much a GPU could do: for status.json, never part of the state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tunesmith_trainer.model import Model
from tunesmith_trainer.run import Precision

# Forward pass, gradient by the activations, gradient by the weights: a multiply and an add for each weight.
_FORWARD, _BY_INPUT, _BY_WEIGHT = 2, 2, 2

# Dense peaks in TFLOP/s, without sparsity, by a part of the name that CUDA gives; the first that fits counts.
# (bfloat16 with tensor cores, float32 without: the trainer keeps TF32 off.) From NVIDIA's data sheets of each
# product and, for GeForce, the white papers on Ampere GA102, Ada and Blackwell (with float32 accumulation).
# None: that GPU has no tensor cores for bfloat16. What is not listed can be given by a setting of the node.
_PEAKS: tuple[tuple[str, float | None, float], ...] = (
    (r"B200\b", 2250, 75),
    (r"H200\b", 989.4, 66.9),
    (r"H100 PCIe", 756, 51),
    (r"H100 NVL", 835, 60),
    (r"H100\b", 989.4, 66.9),
    (r"H800\b", 989.4, 66.9),
    (r"H20\b", 148, 44),
    (r"A[18]00\b", 312, 19.5),
    (r"A30\b", 165, 10.3),
    (r"A40\b", 149.7, 37.4),
    (r"A10\b", 125, 31.2),
    (r"L40S\b", 362, 91.6),
    (r"L40\b", 181, 90.5),
    (r"L4\b", 121, 30.3),
    (r"RTX 6000 Ada", 364.2, 91.1),
    (r"RTX A6000", 154.8, 38.7),
    (r"RTX A5000", 111.1, 27.8),
    (r"RTX 5090$", 209.5, 104.8),
    (r"RTX 4090$", 165.2, 82.6),
    (r"RTX 3090 Ti$", 80, 40),
    (r"RTX 3090$", 71, 35.6),
    (r"V100-PCIE", None, 14),
    (r"V100-SXM", None, 15.7),
    (r"T4\b", None, 8.1),
)


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of the training passes of a model.

    `by_token` are those of the body a token read; `by_label` those of the head, which sees label tokens only
    (`Scorer`); `by_pair` those of the attention for two tokens of the same example.
    """

    by_token: float
    by_label: float
    by_pair: float

    def flops(self, num_tokens: int, num_labels: int, num_examples: int) -> float:
        """Operations of steps over so many tokens, as if their examples were of equal length."""
        pairs = num_tokens * num_tokens / num_examples if num_examples else 0.0
        return self.by_token * num_tokens + self.by_label * num_labels + self.by_pair * pairs


def work_of(model: Model) -> Work:
    """What a model's passes cost.

    Each weight of a matrix product costs 2 operations forward, 2 for the gradient by its input, and 2 for the
    gradient by itself if it is trained: 6 N a token for full fine-tuning, 4 N for what LoRA leaves frozen.
    The attention's two products of queries, keys and values of d numbers in L layers cost 4 L d a pair of
    tokens forward and twice that backward, with no discount for the causal mask. Both as in Chowdhery et al.,
    "PaLM: Scaling Language Modeling with Pathways" (2022), appendix B; so padding, recomputation, norms and
    the optimizer do not count. Of a mixture of experts the share counts that a token goes through.
    """
    head = model.causal.get_output_embeddings()
    body = 0.0
    for name, weight in _matrices(model.causal):
        if weight is not head.weight:
            body += _cost(weight) * (_share(model) if "experts" in name else 1.0)
    config = model.causal.config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Work(body, _cost(head.weight), 12.0 * config.num_hidden_layers * width)


def _matrices(causal: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights that activations are multiplied with; those of embeddings are only looked up."""
    looked_up = {id(each.weight) for each in causal.modules() if isinstance(each, torch.nn.Embedding)}
    for name, weight in causal.named_parameters():
        if weight.ndim >= 2 and id(weight) not in looked_up:
            yield name, weight


def _cost(weight: torch.Tensor) -> float:
    return weight.numel() * (_FORWARD + _BY_INPUT + (_BY_WEIGHT if weight.requires_grad else 0))


def _share(model: Model) -> float:
    """The part of all experts that a token goes through."""
    config = model.causal.config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((value for name in names if (value := getattr(config, name, None))), 0)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / total if total and chosen else 1.0


def peak_flops(name: str, precision: Precision, given: float = 0.0) -> float | None:
    """Peak of one GPU in FLOP/s by its name, or the one that is `given` in TFLOP/s; None when not known."""
    if given:
        return given * 1e12
    if "MIG" in name:  # a slice of a GPU
        return None
    for part, bfloat16, float32 in _PEAKS:
        if re.search(part, name):
            found = bfloat16 if precision is Precision.BFLOAT16 else float32
            return None if found is None else found * 1e12
    return None
