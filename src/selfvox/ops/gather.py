"""Gather embeddings over all processes, with gradients."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


def gather_embeddings(mine: Tensor) -> Tensor:
    """The rows of every device, by rank, without a gradient; the same on each device."""
    return torch.cat(_gathered(mine.detach())) if _many_devices() else mine.detach()


def _many_devices() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _joint(views: Tensor, same_scan: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """All devices' views, first views first; each device's own carry the gradient of the joint loss."""
    devices, own = torch.distributed.get_world_size(), torch.distributed.get_rank()
    parts = _gathered(views.detach())
    parts[own] = views.clone()
    if views.requires_grad:
        # DDP takes the mean of the devices' gradients, and the joint loss asks for their sum
        parts[own].register_hook(lambda gradient: gradient * devices)  # type: ignore[no-untyped-call]
    joint = torch.cat([part.chunk(2)[i] for i in (0, 1) for part in parts])
    if same_scan is None:
        return joint, None
    scans = _gathered(same_scan)
    return joint, torch.cat([part.chunk(2)[i] for i in (0, 1) for part in scans])


def _gathered(mine: Tensor) -> list[Tensor]:
    """A tensor of every device, by rank."""
    parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, mine.contiguous())
    return parts
