"""The devices of a run: how many it was started with, and how it goes on with another number."""

from __future__ import annotations

from selfvox.errors import UsageError
from selfvox.runs.device import Fabric
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run


def started_devices(run: Run, fabric: Fabric) -> int:
    """How many devices the run was started with; recorded in it."""
    recorded: int | None = fabric.broadcast(run.record.get("devices"))
    if recorded is None:
        run.note(devices=fabric.world_size)
        return fabric.world_size
    return recorded


def batch_per_device(batch: int, started: int, devices: int, min_batch: int) -> int:
    """Images of each batch on each device, so that a step learns from as many as at the start.

    Sample numbers count through the batches of all devices, so each step then has the same samples.

    Args:
        batch: on each device at the start.
        started: devices at the start.
        devices: now.
        min_batch: the smallest batch with a loss to learn from.

    Raises:
        UsageError: so many devices cannot share the images equally.
    """
    if started == devices:
        return batch
    images = batch * started
    if images % devices or images // devices < min_batch:
        possible = [
            str(number)
            for number in range(1, images + 1)
            if images % number == 0 and images // number >= min_batch
        ]
        raise UsageError(
            f"devices: {devices} cannot share the {images} images of a batch of this run equally, "
            f"with {min_batch} or more each; resume it on {' or '.join(possible)} devices"
        )
    share = images // devices
    echo(
        f"{devices} devices instead of {started}: each step learns from the same samples, {share} "
        "on each device; views are drawn by device, and sums are rounded in another order, so "
        "the weights will not be bit-identical to those of a run that goes on as it began"
    )
    return share
