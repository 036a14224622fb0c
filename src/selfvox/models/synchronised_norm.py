"""Batch norms with the mean and variance of the joint batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfvox.errors import UsageError
from selfvox.ops.gather import is_distributed, process_count, sum_over_processes

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm of all processes in training, on any device; torch's own needs a GPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (batch, channel, *space); every process has a batch of the same shape."""
        if not (self.training and is_distributed()):
            return super().forward(input)
        shape = (1, -1, *(1,) * (input.ndim - 2))
        axes = (0, *range(2, input.ndim))
        # sums over a batch of volumes exceed the digits of bf16
        x = input.float()
        count = process_count() * x.numel() // x.shape[1]
        mean = sum_over_processes(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        self._update(mean, variance * count / max(1, count - 1))
        x = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as torch's batch norms update them."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def synchronise_norms(module: nn.Module) -> None:
    """Let the batch norms of a module take their statistics over all processes.

    Raises:
        UsageError: it has batch norms of another class.
    """
    for name, child in module.named_modules():
        if type(child) in _NORMS:
            # the class alone: blocks refer to their norm by several names
            child.__class__ = SynchronisedBatchNorm
        elif isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
            raise UsageError(
                f"network: {name} is a {type(child).__name__}, whose statistics cannot be those of "
                "several devices; use another --network.norm, or one device"
            )
