"""Device and precision of a computation."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib
import logging
import platform
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from selfvox.errors import ResourceError
from selfvox.runs.launcher import Launch

# the first of several processes may measure the encoder, or save it, while the others wait for it;
# that they still live is checked apart from this
LONGEST_WAIT = datetime.timedelta(hours=2)


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Import a library without torch's compiler, which takes as long as torch itself.

    Lightning Fabric imports the compiler for one class, of networks that `torch.compile` wrapped,
    to unwrap a network before its setup. selfvox passes none: what it sets up is an objective,
    which contains the network, and `Module.compile` changes no class. Optimisers import the
    compiler themselves; prediction never does, and takes 5.9 s of CPU time for four small scans
    instead of 7.3 s. To import Fabric in `make_fabric` would be simpler, but only postpones this.

    The risks: another thread that imports the compiler in this moment gets the stand-in, and a
    later Fabric may need more of it. The second is handled below, since the stand-in passes every
    other name on to the real compiler; tests/test_layers.py checks that this one works afterwards.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return

    def real_attribute(attribute: str) -> Any:
        if attribute.startswith("__"):  # the import system asks for these
            raise AttributeError(attribute)
        # of a later Fabric that needs more of the compiler
        sys.modules.pop(name, None)
        return getattr(importlib.import_module(name), attribute)

    stand_in = types.ModuleType(name)
    vars(stand_in)["OptimizedModule"] = type("OptimizedModule", (torch.nn.Module,), {})
    vars(stand_in)["__getattr__"] = real_attribute
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


with _without_compiler():
    from lightning_fabric import Fabric as Fabric
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.plugins.precision.amp import MixedPrecision
    from lightning_fabric.strategies.ddp import DDPStrategy


def make_fabric(
    device: str,
    devices: int | None,
    precision: str,
    launch: Launch | None = None,
    *,
    partial: bool = False,
) -> Fabric:
    """Fabric on the requested devices.

    Args:
        device: auto, cpu, cuda or mps; auto is cuda where there is a CUDA device, else cpu.
        devices: how many of them on each machine; None: as many as were launched, else one.
        precision: auto, fp32 or bf16; auto is bf16 where the processor supports it, else fp32.
        launch: the processes that torchrun or SLURM started to train together; None: this process
            is alone, or starts the others itself.
        partial: some layers may have no gradient in some steps.

    Raises:
        ResourceError: a device is missing.
        UsageError: other `devices` than were launched.
    """
    if launch is not None:
        launch.check_devices(devices)
    devices = devices or (launch.per_node if launch else 1)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device: there is no CUDA device here; use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device: there is no MPS device here; use --device cpu")
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, devices)
    if devices > available:
        remedy = "use fewer --devices"
        if launch is not None:
            remedy = "start fewer processes, or let each see all GPUs of its node"
        raise ResourceError(
            f"devices: {devices} of {device} requested, {available} found; {remedy}"
        )
    if device == "cpu":
        _keep_freed_memory()
    if precision == "auto":
        precision = "bf16" if supports_bf16(device) else "fp32"
    # its lines about ranks and backends are not for the person at the terminal
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    nodes = launch.nodes if launch else 1
    plugins: list[Any] = [_environment(launch)]
    if precision == "bf16":
        plugins.append(_KeepsInputs("bf16-mixed", device))
    strategy: DDPStrategy | str = "auto"
    if nodes * devices > 1:
        strategy = DDPStrategy(timeout=LONGEST_WAIT, find_unused_parameters=partial)
    return Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        plugins=plugins,
    )


def _environment(launch: Launch | None) -> ClusterEnvironment:
    """Where a process finds its number; chosen here, since Fabric would choose SLURM for all."""
    if launch is None:
        return LightningEnvironment()
    return TorchElasticEnvironment() if launch.launcher == "torchrun" else SLURMEnvironment()


def is_cpu(device: str) -> bool:
    """Whether this setting of the device means the CPU here."""
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


@contextlib.contextmanager
def inference_mode(fabric: Fabric) -> Iterator[None]:
    """Predict without gradients, in the fabric's precision."""
    with torch.inference_mode(), fabric.autocast():
        yield


_CONVOLUTIONS = {
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
}


class _KeepsInputs(MixedPrecision):
    """Mixed precision that leaves a network's inputs as they are.

    Fabric would round them to bf16, 8 bits for intensities and positions, before any view is made.
    """

    def convert_input(self, data: Any) -> Any:
        return data

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        """Autocast, with the convolutions of small maps in float32 on a CPU."""
        small_maps = _SmallMapsInFloat32() if self.device == "cpu" else contextlib.nullcontext()
        with super().forward_context(), small_maps:
            yield


class _SmallMapsInFloat32(TorchFunctionMode):
    """Convolutions of maps with an edge below 4 in float32, within bf16 autocast on a CPU.

    On processors with AMX, the gradient of the weights that oneDNN (of torch 2.13) computes in bf16
    is wrong, and at times not finite, for maps of 2 voxels, and of 1 with a stride of 2.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        maps = args[0] if args else kwargs["input"]
        if min(maps.shape[2:]) >= 4:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_as_float, args), **{key: _as_float(kwargs[key]) for key in kwargs})


def _as_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def supports_bf16(device: str) -> bool:
    """Whether the processor itself multiplies in bf16, which is faster; emulation is slower."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # a torch without oneDNN, as for Apple silicon, lacks the operator called below
    if device != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # oneDNN claims support on every x86 with AVX-512; emulated, a convolution takes twice as long
    # as in fp32
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    emulated = is_x86 and not torch.cpu._is_avx512_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and not emulated


def _keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors for the next step's tensors.

    By default glibc returns large blocks to the system at once. To fetch them again, page by page,
    took 10 % (crops of 40 voxels) to 45 % (64 voxels) of a step's CPU time; the peak memory is the
    same.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # the numbers of these parameters in malloc.h
    trim_threshold = -1
    top_pad = -2
    most_mapped = -4
    mallopt(most_mapped, 0)  # large blocks come from the heap, which can keep them
    mallopt(trim_threshold, 2**31 - 1)  # the heap never shrinks
    mallopt(top_pad, 2**28)  # and grows in large steps
