"""Gather embeddings over all processes, with and without gradients."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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
