"""The GPU: whether torch can use it, and how much of its memory is free."""

from __future__ import annotations

from pathlib import Path

import torch

from selfvox.machine.check import Check, gigabytes

_NVIDIA_CARD = Path("/dev/nvidia0")
_LEAST_SHARE = 0.5  # free, of a card's memory


def check_gpu(device: str, card_file: Path = _NVIDIA_CARD) -> list[Check]:
    """Whether the requested device is there; a card that torch cannot use is named.

    Args:
        device: auto, cpu, cuda or mps.
        card_file: which exists where there is a card of NVIDIA.
    """
    if device == "cpu":
        return [Check("GPU", "ok", "not asked for")]
    if device != "mps" and torch.cuda.is_available():
        return [_check_card(number) for number in range(torch.cuda.device_count())]
    if device == "mps":
        if torch.backends.mps.is_available():
            return [Check("GPU", "ok", "mps can be used")]
        return [Check("GPU", "fail", "there is no mps device here", "--device cpu")]
    if card_file.exists():
        reason = "its driver is too old or does not run"
        remedy = "update the driver, or install torch for its CUDA version"
        if torch.version.cuda is None:
            reason = f"torch {torch.__version__} is built without CUDA"
            remedy = "install the torch of https://pytorch.org for your CUDA version"
        outcome = "fail" if device == "cuda" else "warn"
        text = f"there is a card of NVIDIA, but {reason}"
        return [Check("GPU", "fail" if outcome == "fail" else "warn", text, remedy)]
    if device == "cuda":
        return [Check("GPU", "fail", "there is no CUDA device here", "--device cpu")]
    return [Check("GPU", "ok", "none; the CPU computes")]


def _check_card(number: int) -> Check:
    card = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    text = f"{card.name}, {gigabytes(free)} of {gigabytes(total)} free"
    architecture = f"sm_{card.major}{card.minor}"
    built_for = torch.cuda.get_arch_list()
    # code of an older architecture of the same generation runs too
    same_generation = [name for name in built_for if name.startswith(f"sm_{card.major}")]
    if built_for and not same_generation:
        text += f"; torch has no code for {architecture}"
        return Check("GPU", "fail", text, "install a torch for this card, or --device cpu")
    if free < total * _LEAST_SHARE:
        return Check("GPU", "warn", f"{text}; other programs use it", "nvidia-smi shows which")
    return Check("GPU", "ok", text)
