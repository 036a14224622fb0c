"""Sums and rows of all processes that train together, with and without gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def process_count() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def process_rank() -> int:
    """The number of this process among them, from 0 on."""
    return torch.distributed.get_rank() if is_distributed() else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum over all processes; the gradient is that of the sum of all processes' losses.

    DDP takes the mean of the gradients of the processes: where each computes the loss of the joint
    batch from such sums, or the loss of its own part, the mean is the gradient of the joint loss.
    """
    if not is_distributed():
        return values
    summed: Tensor = _SumOverProcesses.apply(values)  # type: ignore[no-untyped-call]
    return summed


def mean_over_processes(counts: Tensor) -> Tensor:
    """The mean over all processes, in float32 and without a gradient.

    A sum divided by it is, in the mean over the processes, the mean over the joint batch.
    """
    counts = counts.detach().float()
    if not is_distributed():
        return counts
    total = counts.clone()
    torch.distributed.all_reduce(total)
    return total / process_count()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, by rank; each gets the gradients of all processes' losses.

    Args:
        rows: (n, ...) of this process; every process has as many.

    Returns:
        (processes * n, ...).
    """
    if not is_distributed():
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def gather_embeddings(embeddings: Tensor) -> Tensor:
    """The rows of all processes, by rank, without a gradient; the same in each process.

    Args:
        embeddings: (n, ...) of this process; every process has as many.

    Returns:
        (processes * n, ...).
    """
    if not is_distributed():
        return embeddings.detach()
    return torch.cat(_all_gather(embeddings.detach()))


def gather_views(views: Tensor, scan: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The views of all processes; those of this process carry the gradient of the joint loss.

    Args:
        views: (2N, width) of this process, rows `i` and `i + N` of one sample.
        scan: (2N,) number of the scan that each is from, or None.

    Returns:
        Views (2M, width) and scans (2M,), the first views of all processes before the second ones.
    """
    by_rank = _all_gather(views.detach())
    # gathered tensors have no gradient; those of this process get theirs back
    local = views.clone()
    by_rank[torch.distributed.get_rank()] = local
    if views.requires_grad:
        # DDP averages the gradients of the processes; the joint loss needs their sum
        processes = torch.distributed.get_world_size()
        local.register_hook(lambda gradient: gradient * processes)  # type: ignore[no-untyped-call]
    if scan is None:
        return _join_halves(by_rank), None
    return _join_halves(by_rank), _join_halves(_all_gather(scan))


def _join_halves(by_rank: list[Tensor]) -> Tensor:
    """First halves by rank, then second halves by rank."""
    halves = [rows.chunk(2) for rows in by_rank]
    return torch.cat([first for first, _ in halves] + [second for _, second in halves])


def _all_gather(rows: Tensor) -> list[Tensor]:
    """A tensor of every process, by rank."""
    by_rank = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    # NCCL refuses views of other strides
    torch.distributed.all_gather(by_rank, rows.contiguous())
    return by_rank


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return torch.cat(_all_gather(rows.detach()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total.chunk(process_count())[process_rank()]
