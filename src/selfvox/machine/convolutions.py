"""3D convolutions of this device, compared with float64 on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from selfvox.machine.check import Check
from selfvox.runs.device import Fabric, make_fabric, supports_bf16

# largest relative error of each precision; a GPU rounds the factors of fp32 to 10 bits (TF32)
_MOST_ERROR = {"fp32": 2e-3, "bf16": 2e-2}
_SLOWER = 1.3  # times as long in bf16 as in fp32
_REPEATS = 4


class Layer(NamedTuple):
    """A layer of a U-Net and the edge of its maps in voxels."""

    edge: int
    channels: int
    stride: int = 1
    is_transposed: bool = False

    def __str__(self) -> str:
        kind = "transposed convolution" if self.is_transposed else "convolution"
        return f"{kind} of {self.edge} cubed, stride {self.stride}"


# from the first maps of a network to the last ones, where libraries choose other algorithms
LAYERS = (
    Layer(24, 16),
    Layer(16, 32, stride=2),
    Layer(8, 32),
    Layer(8, 32, stride=2, is_transposed=True),
    Layer(4, 32),
    Layer(2, 32),
    Layer(1, 32, stride=2),
)

Results = tuple[Tensor, ...]  # the output, and the gradients of the maps and of the weights
# the results of a layer in a precision
Compute = Callable[[Layer, str], Results]


def check_convolutions(device: str, compute: Compute | None = None) -> list[Check]:
    """Compare both precisions with float64, and their times with each other.

    Args:
        device: auto, cpu, cuda or mps.
        compute: computes a layer in `fp32` or `bf16`; default: as a training on the device does.
    """
    kind = make_fabric(device, 1, "fp32").device.type
    compute = compute or on_device(kind)
    has_bf16 = kind == "mps" or supports_bf16(kind)
    checks = []
    for precision in ("fp32", "bf16") if has_bf16 else ("fp32",):
        errors = {layer: _relative_error(layer, precision, compute) for layer in LAYERS}
        checks.append(_compare(kind, precision, errors))
    if not has_bf16:
        text = f"the {kind} does not multiply in bf16; --precision auto computes in fp32"
        checks.append(Check("convolutions", "ok", text))
    elif all(check.outcome == "ok" for check in checks):
        checks.append(_compare_times(kind, compute))
    return checks


def on_device(kind: str) -> Compute:
    """Compute layers on a device, as a training does."""
    fabrics: dict[str, Fabric] = {}

    def compute(layer: Layer, precision: str) -> Results:
        if precision not in fabrics:
            fabrics[precision] = make_fabric(kind, 1, precision)
        fabric = fabrics[precision]
        maps, weights = (tensor.float().to(fabric.device) for tensor in _inputs(layer))
        with fabric.autocast():
            return _results(layer, maps, weights)

    return compute


def _relative_error(layer: Layer, precision: str, compute: Compute) -> float:
    """The largest relative error of the layer's results: RMS of the error by RMS of the values."""
    expected = _results(layer, *_inputs(layer))
    results = compute(layer, precision)
    errors = [
        float((result.double().cpu() - exact).norm() / exact.norm())
        for result, exact in zip(results, expected, strict=True)
    ]
    # a comparison with nan is never true, so max() could lose it
    return max(error if error == error else float("inf") for error in errors)


def _inputs(layer: Layer) -> tuple[Tensor, Tensor]:
    """Random maps (2, channel, *space) and weights (channel, channel, *space), float64."""
    rng = torch.Generator().manual_seed(layer.edge)
    maps = torch.randn(2, layer.channels, *(layer.edge,) * 3, generator=rng, dtype=torch.float64)
    kernel = (2,) * 3 if layer.is_transposed else (3,) * 3
    weights = torch.randn(
        layer.channels, layer.channels, *kernel, generator=rng, dtype=torch.float64
    )
    return maps, weights


def _results(layer: Layer, maps: Tensor, weights: Tensor) -> Results:
    maps = maps.requires_grad_()
    weights = weights.requires_grad_()
    if layer.is_transposed:
        output = torch.conv_transpose3d(maps, weights, stride=layer.stride)
    else:
        output = torch.conv3d(maps, weights, stride=layer.stride, padding=1)
    # a gradient with another value in each voxel
    output.square().sum().backward()  # type: ignore[no-untyped-call]  # of torch
    assert maps.grad is not None
    assert weights.grad is not None
    return output.detach(), maps.grad, weights.grad


def _compare(kind: str, precision: str, errors: dict[Layer, float]) -> Check:
    layer = max(errors, key=lambda key: errors[key])
    if errors[layer] <= _MOST_ERROR[precision]:
        text = f"{precision} on {kind}: relative error {errors[layer]:.1g} or less, with gradients"
        return Check("convolutions", "ok", text)
    text = f"{precision} on {kind}: a {layer} has a relative error of {errors[layer]:.2g}"
    remedy = "--device cpu, and another version of torch"
    if precision == "bf16":
        remedy = "--precision fp32, and another version of torch"
    return Check("convolutions", "fail", text, remedy)


def _compare_times(kind: str, compute: Compute) -> Check:
    """Whether bf16 is as fast as it should be, for the largest maps."""
    # in turns: other work of the machine slows both down
    times = [
        (_seconds(kind, "fp32", compute), _seconds(kind, "bf16", compute)) for _ in range(_REPEATS)
    ]
    seconds = {"fp32": min(fp32 for fp32, _ in times), "bf16": min(bf16 for _, bf16 in times)}
    ratio = seconds["bf16"] / max(seconds["fp32"], 1e-9)
    text = f"bf16 on {kind} takes {ratio:.1f} times as long as fp32"
    if ratio <= _SLOWER:
        return Check("convolutions", "ok", text)
    return Check("convolutions", "warn", text, "--precision fp32")


def _seconds(kind: str, precision: str, compute: Compute) -> float:
    """The time of the layer with the largest maps; of a CPU its own time, without other work."""
    clock = time.process_time if kind == "cpu" else time.perf_counter
    start = clock()
    # to the CPU: a GPU computes while Python goes on
    for result in compute(LAYERS[0], precision):
        result.cpu()
    return clock() - start
