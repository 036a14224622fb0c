"""Weights on disk: safetensors and a JSON card, loaded strictly; nothing in them is executed."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from selfvox.errors import DataError, NumericalError, WeightsError
from selfvox.runs import typed_json
from selfvox.runs.atomic_files import atomic_write, retry_io_errors, sha256
from selfvox.runs.card import (
    FORMAT,
    SEEN_CHECKSUM,
    AnyNetworkCard,
    Card,
    EncoderCard,
    parse_network_card,
)
from selfvox.runs.seen_scans import write_seen

# of a file of weights, about 100 for each tensor; a network has hundreds of them
_MOST_HEADER_BYTES = 4_000_000


def state_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers, each once, however often it is registered."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, Tensor], origin: str) -> str:
    """Copy tensors into a module, all of them or none.

    Args:
        module: its parameters and buffers are overwritten.
        tensors: by the names of these.
        origin: the file or run they come from, for messages.

    Returns:
        A report: `42 tensors, 1.20 M values`.

    Raises:
        WeightsError: a name is missing or unknown, a shape or kind of number differs, or a value
            is not finite; the first such tensor is named.
    """
    return copy_strictly(state_tensors(module), tensors, origin)


def copy_strictly(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str) -> str:
    """Copy tensors into those of the same names, as `load_strictly` does into a whole module.

    Args:
        targets: parameters and buffers, which are overwritten.
        tensors: by the same names.
        origin: the file or run they come from, for messages.

    Returns:
        A report: `42 tensors, 1.20 M values`.

    Raises:
        WeightsError: as `load_strictly`.
    """
    # all are checked before the first is copied: a refused network is unchanged
    _check_fit(targets, tensors, origin)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
    values = sum(target.numel() for target in targets.values())
    return f"{len(targets)} tensors, {values / 1e6:.2f} M values"


def _check_fit(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors that are not exactly those of the network, or are not finite.

    Raises:
        WeightsError: the first that does not fit.
    """
    for name, target in targets.items():
        if name not in tensors:
            raise WeightsError(
                f"{origin}: has no tensor '{name}'; it was saved from another network"
            )
        tensor = tensors[name]
        if tensor.shape != target.shape:
            raise WeightsError(
                f"{origin}: '{name}' is {tuple(tensor.shape)} and the network's is "
                f"{tuple(target.shape)}; it was saved from another network"
            )
        if tensor.is_floating_point() != target.is_floating_point():
            raise WeightsError(
                f"{origin}: '{name}' is of {tensor.dtype} and the network's of {target.dtype}; "
                "copy it again"
            )
        if not _is_finite(tensor):
            raise WeightsError(
                f"{origin}: '{name}' has values that are not finite; use an earlier checkpoint"
            )
    unknown = [name for name in tensors if name not in targets]
    if unknown:
        raise WeightsError(
            f"{origin}: '{unknown[0]}' is not in the network; it was saved from another network"
        )


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def adapt_first_convolutions(
    tensors: Mapping[str, Tensor], module: torch.nn.Module, policy: str | None
) -> dict[str, Tensor]:
    """Fit the weights that see an image's channels to a module with another number of channels.

    These are the tensors (out, in, ...) that differ in their second axis alone. Averaged or
    repeated weights are scaled by old over new channels, so that the sum over equal channels stays
    the same. (`tile`: exactly, if the new number is a multiple of the old one. If there are fewer
    channels than before, only the weights of the first ones are used.)

    Args:
        tensors: of the old network.
        module: the new one.
        policy: `mean` puts the mean of the old channels into each new one, `tile` repeats the old
            ones in turn, `random` keeps the module's own weights.
    """
    adapted = dict(tensors)
    for name, target in state_tensors(module).items():
        old = tensors.get(name)
        if old is None or not _differ_in_channels(old, target):
            continue
        if policy == "random":
            adapted[name] = target.detach().clone()
            continue
        if policy == "tile":
            channels = torch.arange(target.shape[1]) % old.shape[1]
            spread = old[:, channels]
        else:
            spread = old.mean(1, keepdim=True).expand(target.shape)
        adapted[name] = spread * (old.shape[1] / target.shape[1])
    return adapted


def _differ_in_channels(old: Tensor, new: Tensor) -> bool:
    """Whether two convolution weights (out, in, *kernel) differ in their input channels alone."""
    if old.ndim < 3 or old.shape == new.shape:
        return False
    return (old.shape[0], *old.shape[2:]) == (new.shape[0], *new.shape[2:])


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically.

    Raises:
        NumericalError: a value is not finite; nothing is written.
        ResourceError: the disk is full.
    """
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise NumericalError(
                f"{path}: not written, since '{name}' is not finite; lower --learning-rate"
            )
    # safetensors refuses tensors that are not contiguous
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    retry_io_errors(lambda: _write_tensors(path, plain))


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_write(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary)
        except safetensors.SafetensorError as error:
            # it hides the system's error number in its text: "No space left (os error 28)"
            match = re.search(r"os error (\d+)", str(error))
            number = int(match[1]) if match else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; nothing in it is ever executed.

    Raises:
        WeightsError: it is missing, not a regular file, or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights")
    try:
        _check_header(path)
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, struct.error) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); copy it again"
        ) from None
    return tensors


def _check_header(path: Path) -> None:
    """Refuse a header of more tensors than any network has, which would take minutes to read.

    Raises:
        WeightsError: the header is larger than `_MOST_HEADER_BYTES`.
    """
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
    if size > _MOST_HEADER_BYTES:
        raise WeightsError(
            f"{path}: not a readable safetensors file (header too large); copy it again"
        )


def save_part(folder: Path, name: str, module: torch.nn.Module, card: Mapping[str, Any]) -> None:
    """Save a part of a network with its card.

    Args:
        folder: gets `weights.safetensors`, the card `NAME.json`, and `seen.safetensors` if the
            card says what was seen.
        name: `encoder`, `decoder` or `network`.
        module: the weights.
        card: what is needed to build the module and to use it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    save_tensors(weights, state_tensors(module))
    entries = {"format": FORMAT, **card, "sha256": sha256(weights)}
    if "seen" in entries:
        entries[SEEN_CHECKSUM] = write_seen(folder, entries.pop("seen"))
    # the card comes last: its checksums say that the others are complete
    typed_json.write_checked(folder / f"{name}.json", entries)


def _load_weights(folder: Path, checksum: str) -> dict[str, Tensor]:
    weights = folder / "weights.safetensors"
    if not weights.is_file() or sha256(weights) != checksum:
        raise WeightsError(
            f"{weights}: missing or damaged, its checksum does not match; copy it again"
        )
    return load_tensors(weights)


def _read_entries(folder: Path, name: str) -> dict[str, Any]:
    """The content of the card `NAME.json` of a folder, of the format of this version."""
    file = folder / f"{name}.json"
    if not file.exists():
        raise WeightsError(
            f"{folder}: has no {name}.json; name a finished run, or the folder of its {name}"
        )
    try:
        entries = typed_json.read_checked(file)
    except DataError as error:
        raise WeightsError(f"{error}; copy it again") from None
    if not isinstance(entries.get("sha256"), str) or "format" not in entries:
        raise WeightsError(f"{file}: damaged (has no 'format' or 'sha256'); copy it again")
    if entries["format"] != FORMAT:
        raise WeightsError(
            f"{file}: format {entries['format']} is not known to this version; update selfvox"
        )
    return entries


def part_folder(run: Path, name: str) -> Path:
    """The folder of a run's `encoder` or `network`; or `run` itself, if it is that folder."""
    return run / name if (run / name).is_dir() else run


def read_network_card(run: Path) -> AnyNetworkCard:
    """The card of a fine-tuning run, or of its `network/` folder, without the weights.

    Raises:
        WeightsError: it is missing, damaged, or of a newer format.
    """
    folder = part_folder(run, "network")
    return parse_network_card(_read_entries(folder, "network"), folder / "network.json")


def read_network(run: Path) -> tuple[dict[str, Tensor], AnyNetworkCard]:
    """The tensors and the card of a fine-tuning run, or of its `network/` folder.

    Raises:
        WeightsError: a file is missing, damaged, or of a newer format.
    """
    card = read_network_card(run)
    return _load_weights(part_folder(run, "network"), card.sha256), card


def read_encoder(run: Path) -> tuple[dict[str, Tensor], Card]:
    """The tensors and the card of an encoder.

    Args:
        run: a pre-training run, its `encoder/` folder, or a fine-tuning run.

    Returns:
        The encoder's tensors, and its card: an `EncoderCard`, or that of a fine-tuned
        network; the encoder then learned from labels.

    Raises:
        WeightsError: a file is missing, damaged, or of a newer format.
    """
    if not (run / "network").is_dir():
        folder = part_folder(run, "encoder")
        card = EncoderCard.from_json(_read_entries(folder, "encoder"), folder / "encoder.json")
        return _load_weights(folder, card.sha256), card
    tensors, network_card = read_network(run)
    # as Segmenter and Classifier name the encoder among their own tensors
    prefix = "encoder."
    encoder = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return encoder, network_card


def read_decoder(run: Path) -> dict[str, Tensor] | None:
    """The tensors of the decoder of a pre-training run; None where its task trained none.

    Raises:
        WeightsError: a file is missing, damaged, or of a newer format.
    """
    folder = run / "decoder"
    if not folder.is_dir():
        return None
    return _load_weights(folder, _read_entries(folder, "decoder")["sha256"])
