"""Where to compute, and in which arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision

from selfvox.errors import ResourceError


def make_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Fabric on the devices asked for, in bf16 where the processor computes it and `precision` is auto.

    Raises:
        ResourceError: a device that is not there.
    """
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device: there is no CUDA device here; use --device cpu")
    if chosen == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device: there is no MPS device here; use --device cpu")
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(chosen, devices)
    if devices > there:
        raise ResourceError(
            f"devices: {devices} of {chosen} are asked for, {there} found; use fewer --devices"
        )
    if chosen == "cpu":
        _keep_freed_memory()
    if precision == "auto":
        precision = "bf16" if supports_bf16(chosen) else "fp32"
    return Fabric(
        accelerator=chosen,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        plugins=_KeepsInputs("bf16-mixed", chosen) if precision == "bf16" else None,
    )


@contextlib.contextmanager
def inference_mode(fabric: Fabric) -> Iterator[None]:
    """Compute answers, without gradients and in the fabric's arithmetic."""
    with torch.inference_mode(), fabric.autocast():
        yield


class _KeepsInputs(MixedPrecision):
    """Mixed precision that leaves a network's inputs as they are.

    Fabric would round them to bf16 before any view is made of them: 8 bits for intensities and positions.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def supports_bf16(device: str) -> bool:
    """Whether the processor itself multiplies in bf16, which pays; emulation does not count."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # where torch is built without oneDNN, as for Apple silicon, it has no such operator to ask
    if device != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # oneDNN says so of every x86 that has AVX-512; emulated, a convolution takes twice as long as in fp32
    emulated = (
        platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported()
    )
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not emulated


def _keep_freed_memory() -> None:
    """Let this process keep what tensors free, for the next step's tensors of the same sizes.

    By default glibc gives large blocks back at once, and fetching them anew, page by page, took 10 % (crops of 40
    voxels) to 45 % (64 voxels) of a step's CPU time; peak memory stayed the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    most_mapped, trim_threshold, top_pad = -4, -1, -2  # of malloc.h
    for parameter, value in ((most_mapped, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
        mallopt(parameter, value)
