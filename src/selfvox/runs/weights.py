"""Weights on disk: safetensors and a JSON card, checked strictly when they are loaded. Nothing in them is executed."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from selfvox.errors import NumericalError, WeightsError
from selfvox.runs.atomic_files import atomic_write, sha256, write_json

FORMAT = 1  # of a card


def state_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers, each once, however often it is registered."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> str:
    """Copy tensors into a module, all of them or none; returns the report, `42 tensors, 1.2 M values`.

    Raises:
        WeightsError: a name is missing or unknown, or a shape differs: the first one is named with both shapes.
    """
    own = state_tensors(module)
    for name, tensor in own.items():
        if name not in tensors:
            raise WeightsError(
                f"{where}: has no tensor '{name}'; it was saved from another network"
            )
        if tensors[name].shape != tensor.shape:
            raise WeightsError(
                f"{where}: '{name}' is {tuple(tensors[name].shape)} and the network's is {tuple(tensor.shape)}; "
                "it was saved from another network"
            )
        if tensors[name].is_floating_point() and not bool(torch.isfinite(tensors[name]).all()):
            raise WeightsError(
                f"{where}: '{name}' holds values that are not finite; take an earlier checkpoint"
            )
    unknown = [name for name in tensors if name not in own]
    if unknown:
        raise WeightsError(
            f"{where}: '{unknown[0]}' is not in the network; it was saved from another network"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return (
        f"{len(own)} tensors, {sum(tensor.numel() for tensor in own.values()) / 1e6:.2f} M values"
    )


def adapt_first_convolutions(
    tensors: Mapping[str, Tensor], module: torch.nn.Module, policy: str | None
) -> dict[str, Tensor]:
    """Fit the weights that see an image's channels to a module that takes another number of them.

    Those are the tensors (out, in, ...) whose second axis alone differs. What is averaged or repeated is scaled by old
    over new channels, so that what a voxel of equal channels adds up to stays (`tile`: where the new number is a
    multiple of the old; of fewer channels, only the first ones' weights are used).

    Args:
        tensors: of the old network.
        module: the new one.
        policy: `mean` of the old channels in each new one, `tile` repeats them in turn, `random` keeps the new.
    """
    fitted = dict(tensors)
    for name, own in state_tensors(module).items():
        old = tensors.get(name)
        if old is None or old.ndim < 3 or old.shape == own.shape:
            continue
        if (old.shape[0], *old.shape[2:]) != (own.shape[0], *own.shape[2:]):
            continue
        if policy == "random":
            fitted[name] = own.detach().clone()
        else:
            channels = torch.arange(own.shape[1]) % old.shape[1]
            spread = (
                old[:, channels]
                if policy == "tile"
                else old.mean(1, keepdim=True).expand(own.shape)
            )
            fitted[name] = spread * (old.shape[1] / own.shape[1])
    return fitted


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        NumericalError: a value is not finite; nothing is written.
        ResourceError: the disk is full.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericalError(
                f"{path}: not written, since '{name}' is not finite; lower --learning-rate"
            )
    with atomic_write(path) as temporary:
        try:
            safetensors.torch.save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
            )
        except safetensors.SafetensorError as error:
            # it hides what the system said, such as "No space left on device (os error 28)"
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        WeightsError: it is missing, no regular file, or damaged. Nothing in it is ever executed.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, struct.error) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); copy it again"
        ) from None
    return tensors


def save_part(folder: Path, name: str, module: torch.nn.Module, card: Mapping[str, Any]) -> None:
    """Save a part of a network for others to load: `weights.safetensors`, and `NAME.json` that says what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    save_tensors(weights, state_tensors(module))
    write_json(folder / f"{name}.json", {"format": FORMAT, **card, "sha256": sha256(weights)})


def load_part(
    folder: Path, name: str, needs: Iterable[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the card that `save_part` wrote; the card holds at least what `needs` names.

    Raises:
        WeightsError: a file is missing, damaged, or of a newer format.
    """
    file, weights = folder / f"{name}.json", folder / "weights.safetensors"
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = card["format"] == FORMAT and isinstance(card["sha256"], str)
    except OSError:
        raise WeightsError(
            f"{folder}: holds no {name}.json; name a finished run, or the folder of its {name}"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{file}: damaged ({error}); copy it again") from None
    if not known:
        raise WeightsError(
            f"{file}: format {card['format']} is not known to this version; update selfvox"
        )
    missing = [key for key in needs if key not in card]
    if missing:
        raise WeightsError(f"{file}: damaged (has no '{missing[0]}'); copy it again")
    if not weights.is_file() or sha256(weights) != card["sha256"]:
        raise WeightsError(
            f"{weights}: missing or damaged, its checksum does not match; copy it again"
        )
    return load_tensors(weights), card


def part_folder(run: Path, name: str) -> Path:
    """The folder of a run's `encoder` or `network`; or `run` itself, where it is that folder."""
    return run / name if (run / name).is_dir() else run


def read_encoder(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's tensors and the card of a pre-training run, of its `encoder/` folder, or of a fine-tuning run.

    Raises:
        WeightsError: as `load_part`.
    """
    needs = ("network", "spatial_dims", "in_channels", "recipe", "seen")
    if (run / "network").is_dir():
        tensors, card = load_part(run / "network", "network", needs)
        prefix = "encoder."
        own = {
            name.removeprefix(prefix): each
            for name, each in tensors.items()
            if name.startswith(prefix)
        }
        return own, {**card, "task": {"name": f"the labels of {run.name}"}}
    return load_part(part_folder(run, "encoder"), "encoder", (*needs, "task"))
