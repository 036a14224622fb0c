"""Files of weights made by other programs, read in a process of their own with limits.

Such a file is a pickle. torch reads it with `weights_only=True`, so that nothing in it is executed;
the process has bounds on memory and time, since a small file may ask for all of both. What comes
out is a file of safetensors and plain values.
"""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from selfvox.errors import ResourceError, WeightsError, printable
from selfvox.runs.weights import load_tensors

SECONDS = 600  # of the processor, at most
# torch itself needs some gigabytes of addresses; the tensors are in memory up to three times
BASE_BYTES = 16 * 2**30
PER_BYTE = 6
# where programs put the weights in their file, in the order in which they are tried
WRAPPERS = ("state_dict", "network_weights", "net", "student", "model")
PREFIXES = ("module.", "_orig_mod.", "backbone.")  # of wrapped networks
# entries that describe the network, of nnssl
DESCRIPTIONS = ("nnssl_adaptation_plan",)
LARGEST_DESCRIPTION = 2**20  # bytes


@dataclass(frozen=True)
class ForeignFile:
    """The tensors of a file, by the names that they have inside of wrappers and prefixes."""

    file: Path
    tensors: dict[str, Tensor]
    descriptions: Mapping[str, Any]  # plain values


def read_foreign(file: Path) -> ForeignFile:
    """Read a file of weights, `.pth` or `.safetensors`.

    Raises:
        WeightsError: it is missing, has no weights, or objects other than tensors and plain values.
        ResourceError: reading it takes too much memory or time.
    """
    if not file.is_file():
        raise WeightsError(f"{printable(file)}: there is no such file of weights")
    if file.suffix == ".safetensors":
        return ForeignFile(file, _without_prefixes(load_tensors(file)), {})
    with tempfile.TemporaryDirectory() as folder:
        _run_reader(file, Path(folder))
        tensors = load_tensors(Path(folder) / "weights.safetensors")
        descriptions = json.loads((Path(folder) / "descriptions.json").read_text())
    return ForeignFile(file, _without_prefixes(tensors), descriptions)


def _run_reader(file: Path, folder: Path) -> None:
    """Read the file in another process, which writes its tensors into the folder."""
    command = [sys.executable, "-m", __name__, str(file.absolute()), str(folder)]
    try:
        result = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, text=True, timeout=10 * SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ResourceError(
            f"{printable(file)}: takes too long to read; is it a file of weights?"
        ) from None
    if result.returncode == 0:
        return
    lines = result.stderr.strip().splitlines()
    reason = printable(lines[-1][:300]) if lines else f"ended by signal {-result.returncode}"
    if result.returncode < 0 or "MemoryError" in reason or "allocate memory" in reason:
        raise ResourceError(
            f"{printable(file)}: needs more memory or time than weights of its size ({reason})"
        )
    raise WeightsError(
        f"{printable(file)}: is not a file of tensors and plain values ({reason}); save its state "
        "dict alone, by torch.save(network.state_dict(), FILE)"
    )


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the names of wrappers that their names begin with."""
    plain = {}
    for name, tensor in tensors.items():
        while prefix := next(filter(name.startswith, PREFIXES), ""):
            name = name.removeprefix(prefix)
        plain[name] = tensor
    return plain


def _limit(file: Path) -> None:
    """Bound the memory and the time of this process."""
    size = BASE_BYTES + PER_BYTE * file.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def _convert(file: Path, folder: Path) -> None:
    """Write the tensors of a pickle as safetensors, and its descriptions as JSON."""
    # numbers of numpy that training programs put next to the weights; they execute nothing
    scalar = importlib.import_module("numpy._core.multiarray").scalar
    scalars: list[Any] = [scalar, np.dtype, np.float64, np.float32, np.int64]
    scalars += [type(np.dtype(kind)) for kind in ("f8", "f4", "i8")]
    with torch.serialization.safe_globals(scalars):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise TypeError(f"is a {type(content).__name__} and no mapping of names to tensors")
    weights: Mapping[Any, Any] = content
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    # aliases of one tensor are written as copies
    tensors = {
        str(name): tensor.detach().clone().contiguous()
        for name, tensor in weights.items()
        if isinstance(tensor, Tensor)
    }
    if not tensors:
        raise TypeError("has no tensors where programs put weights")
    safetensors.torch.save_file(tensors, folder / "weights.safetensors")
    described = {key: content[key] for key in DESCRIPTIONS if key in content}
    text = json.dumps(described)
    if len(text) > LARGEST_DESCRIPTION:
        raise TypeError("has a description of more than a megabyte")
    (folder / "descriptions.json").write_text(text)


if __name__ == "__main__":
    _limit(Path(sys.argv[1]))
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
