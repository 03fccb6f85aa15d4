"""Counter-based randomness: every draw is a function of (seed, domain, index); no state is saved."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import numpy as np
import torch


class Domain(StrEnum):
    """What a random stream is for. Streams of different domains are independent."""

    INITIALIZE = "initialize"
    FORWARD = "forward"
    ORDER = "order"
    SPLIT = "split"
    WORD_DROPOUT = "word_dropout"
    NEFTUNE = "neftune"
    ROWS = "rows"
    GENERATE = "generate"


def derive(seed: int, domain: Domain, index: int) -> int:
    """A 63-bit seed for one draw; blake2b keeps neighbouring indices independent."""
    digest = hashlib.blake2b(f"{seed}/{domain}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_torch(seed: int, domain: Domain, index: int) -> None:
    """Seed what torch draws next. Not `torch.manual_seed`: it visits every back end, 128 µs against 1 µs."""
    value = derive(seed, domain, index)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)


def permutation(seed: int, domain: Domain, index: int, size: int) -> list[int]:
    """A random order of `range(size)`."""
    order: list[int] = generator(seed, domain, index).permutation(size).tolist()
    return order


def generator(seed: int, domain: Domain, index: int) -> np.random.Generator:
    """A generator of its own for one draw."""
    return np.random.Generator(np.random.PCG64(derive(seed, domain, index)))
