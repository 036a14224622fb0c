"""Answers out of a fixed number: the layer that gives them, and how well they are given."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.ops.outcome import Outcome


def answer_layer(width: int, answers: int) -> nn.Linear:
    """A linear layer of small weights: an untrained network finds every answer equally likely."""
    layer = nn.Linear(width, answers)
    nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(layer.bias)
    return layer


def answer_outcome(logits: Tensor, answer: Tensor) -> Outcome:
    """Cross-entropy and accuracy, and what random guesses reach of both.

    Args:
        logits: (n, answers); the loss is computed in float32.
        answer: (n,) integers.
    """
    # bf16 has two to three digits, too few for a loss
    logits = logits.float()
    accuracy = (logits.argmax(1) == answer).float().mean()
    metrics = {
        "accuracy": accuracy,
        "chance": torch.tensor(1 / logits.shape[1], device=logits.device),
        "loss_chance": torch.tensor(math.log(logits.shape[1]), device=logits.device),
    }
    return Outcome(F.cross_entropy(logits, answer), metrics)
