"""The network of a fine-tuning: an encoder, pre-trained or not, and new layers after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from selfvox.data.preparation.fit_recipe import SPACING_TOLERANCE
from selfvox.data.preparation.recipe import is_near
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import in_plane_cases, median_spacing, slice_axis
from selfvox.errors import DataError, UsageError
from selfvox.models.build import (
    build_encoder,
    check_input,
    network_settings,
    plan_encoder,
    plans_divisor,
)
from selfvox.models.encoder import Encoder
from selfvox.models.low_rank import add_low_rank
from selfvox.models.segmenter import OUTPUT_LAYERS, LinearReadout, Segmenter
from selfvox.models.unet import PLAIN, RESIDUAL, Architecture
from selfvox.runs.card import EncoderCard
from selfvox.runs.progress import echo
from selfvox.runs.weights import adapt_first_convolutions, load_strictly, state_tensors
from selfvox.settings.options import as_dict, resolve
from selfvox.settings.verbs import Finetune
from selfvox.training.downstream import DownstreamTask
from selfvox.training.pretrained import Pretrained
from selfvox.training.schedule import EncoderSchedule
from selfvox.training.whole_scan_task import WholeScanTask


@dataclass(frozen=True, kw_only=True)
class FinetuneNetwork:
    """A network that is about to be fine-tuned."""

    network: nn.Module
    encoder: Encoder  # a part of the network
    crop: tuple[int, ...]
    steps: int  # of the run
    frozen_steps: int  # the encoder is frozen for so many steps
    encoder_schedule: EncoderSchedule | None  # of a pre-trained encoder
    spec: dict[str, Any]  # what the encoder is built from
    origin: str  # where the encoder came from, in words


def build_network(
    settings: Finetune,
    store: Store,
    training: Sequence[StoredCase],
    task: DownstreamTask,
    pretrained: Pretrained | nn.Module | None,
    count_steps: Callable[[Sequence[int], nn.Module], int],
) -> FinetuneNetwork:
    """Build the network, load the encoder if there is one, and print what was done.

    New weights are drawn from torch's global generator.

    Args:
        settings: of the verb.
        store: the prepared scans.
        training: the cases that train.
        task: decides on the layers after the encoder.
        pretrained: the encoder on disk, or a module, used as it is; None: from scratch.
        count_steps: number of steps of the run for crops of these edges and this network, which
            it leaves as it is.

    Raises:
        UsageError: a crop or network that does not suit the scans or the encoder.
        DataError: scans of other dimensions than the encoder's.
        WeightsError: the weights do not fit the network.
    """
    cases = in_plane_cases(training, slice_axis(settings.slices, training))
    channels = len(store.recipe.channel_names)
    if isinstance(pretrained, Pretrained):
        spec = dict(pretrained.card.network)
        encoder, report = _load_encoder(settings, cases, channels, pretrained)
    else:
        encoder, spec = _new_encoder(settings, cases, channels, pretrained, task)
        report = "from scratch" if pretrained is None else "passed as a module"
    crop = task.input_size(settings.crop, cases, encoder.strides[-1])
    check_input(spec, crop)
    card = pretrained.card if isinstance(pretrained, Pretrained) else None
    if isinstance(card, EncoderCard) and isinstance(task, WholeScanTask):
        _warn_of_other_scale(cases, crop, card.spacing_mm)
    network = task.network(encoder, spec)
    new_values = _count_values(network) - _count_values(encoder)
    if isinstance(pretrained, Pretrained) and pretrained.decoder is not None:
        loaded, decoder_report = _load_decoder(network, pretrained.decoder, settings.encoder)
        new_values -= loaded
        report = f"{report}; {decoder_report}"
    echo(f"encoder: {report}; after it {new_values / 1e6:.2f} M random values")
    if settings.freeze == "lora":
        values = _count_values(encoder)
        trained = add_low_rank(encoder)
        is_random = "" if pretrained else ", random ones, only as a baseline"
        echo(
            f"the {values / 1e6:.2f} M values of the encoder are frozen{is_random}; "
            f"{trained / 1e6:.3f} M of low-rank changes of its layers are trained, and merged into "
            "it where it is saved"
        )
    steps = count_steps(crop, network)
    # random weights have nothing that a warm-up could save
    warmup = 0.0 if pretrained is None else settings.warmup
    share = {"never": 0.0, "always": 1.0, "warmup": warmup, "lora": 0.0}[settings.freeze]
    frozen_steps = round(share * steps)
    schedule = None
    # low-rank changes start at 0: they have nothing to lose either
    if pretrained is not None and settings.freeze != "lora":
        schedule = EncoderSchedule(
            release=frozen_steps,
            factor=settings.encoder_lr,
            sawtooth=settings.schedule == "sawtooth",
        )
    _describe_rates(task.learning_rate, schedule, frozen_steps, steps, pretrained is not None)
    return FinetuneNetwork(
        network=network,
        encoder=encoder,
        crop=crop,
        steps=steps,
        frozen_steps=frozen_steps,
        encoder_schedule=schedule,
        spec=spec,
        origin=report,
    )


def _describe_rates(
    learning_rate: float,
    schedule: EncoderSchedule | None,
    frozen_steps: int,
    steps: int,
    is_pretrained: bool,
) -> None:
    if frozen_steps:
        is_random = ", with random weights: only as a baseline of frozen encoders"
        echo(
            f"the encoder is frozen for {frozen_steps} of {steps} steps"
            f"{'' if is_pretrained else is_random}"
        )
    if schedule is None:
        echo(f"the learning rate rises to {learning_rate:g}")
    elif frozen_steps < steps:
        peak = learning_rate * schedule.factor
        echo(
            f"the learning rate of the encoder rises to {peak:g}, that of the other layers to "
            f"{learning_rate:g}"
        )


def _warn_of_other_scale(
    cases: Sequence[StoredCase], size: Sequence[int], trained_mm: Sequence[float]
) -> None:
    """Warn if whole scans are resized to voxels that the encoder was not trained on."""
    shape = np.median([case.shape for case in cases], axis=0)
    resized_mm = (np.array(median_spacing(cases)) * shape / size).tolist()
    if is_near(resized_mm, trained_mm, SPACING_TOLERANCE):
        return
    edges = ",".join(map(str, size))
    echo(
        f"warning: whole scans are resized to voxels of {_in_mm(resized_mm)}, and the encoder was "
        f"pre-trained at {_in_mm(trained_mm)}; pre-train it with --size {edges}, or choose "
        "another --crop"
    )


def _in_mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:.3g}" for mm in spacing) + " mm"


def _new_encoder(
    settings: Finetune,
    cases: Sequence[StoredCase],
    channels: int,
    module: nn.Module | None,
    task: DownstreamTask,
) -> tuple[Encoder, dict[str, Any]]:
    """An encoder from scratch, or a module as it is, and what it is built from."""
    network = settings.network if module is None else module
    divisor = None if isinstance(network, nn.Module) else plans_divisor(network)
    crop = task.input_size(settings.crop, cases, divisor)
    spec = plan_encoder(network, crop, median_spacing(cases))
    return build_encoder(spec if module is None else module, len(crop), channels), spec


def _load_encoder(
    settings: Finetune, cases: Sequence[StoredCase], channels: int, pretrained: Pretrained
) -> tuple[Encoder, str]:
    """The pre-trained encoder, and a report of what was loaded."""
    card = pretrained.card
    d = len(cases[0].shape)
    _check_same_network(settings, card.network, d)
    if d != card.spatial_dims:
        raise DataError(
            f"{settings.labelled}: has {d}D scans and {settings.encoder} was trained on "
            f"{card.spatial_dims}D ones; name scans like those"
        )
    encoder = build_encoder(card.network, d, channels)
    tensors = pretrained.tensors
    adaptation = ""
    if channels != card.in_channels:
        tensors = adapt_first_convolutions(tensors, encoder, settings.first_conv)
        adaptation = (
            f"; first convolution from {card.in_channels} to {channels} channels: "
            f"{settings.first_conv}"
        )
    loaded = load_strictly(encoder, tensors, settings.encoder)
    origin = f"pre-trained by {pretrained.learned_from}"
    return encoder, f"loaded {loaded} into the encoder, {origin}; none left over{adaptation}"


def _load_decoder(
    network: nn.Module, tensors: Mapping[str, Tensor], origin: str
) -> tuple[int, str]:
    """Load a pre-trained decoder, except its output, where the network has such a decoder.

    Returns:
        How many values were loaded, and a report in words.

    Raises:
        WeightsError: it was trained with another encoder.
    """
    if not isinstance(network, Segmenter):
        return 0, "its decoder is left out, since a classifier has none"
    if isinstance(network.decoder, LinearReadout):
        return 0, "its decoder is left out, since --head linear has none"
    state = state_tensors(network.decoder)
    kept = {name: tensor for name, tensor in state.items() if name.startswith(OUTPUT_LAYERS)}
    pretrained = {
        name: tensor for name, tensor in tensors.items() if not name.startswith(OUTPUT_LAYERS)
    }
    load_strictly(network.decoder, {**pretrained, **kept}, f"{origin}, its decoder")
    values = sum(tensor.numel() for tensor in pretrained.values())
    report = f"{len(pretrained)} tensors, {values / 1e6:.2f} M values"
    return values, f"loaded {report} into the decoder, except its new output layer"


def _check_same_network(settings: Finetune, spec: Mapping[str, Any], d: int) -> None:
    """Refuse the setting `network` if it is another one than the encoder's.

    Raises:
        UsageError: the first setting that differs.
    """
    requested = network_settings(settings.network, d)
    if requested == {"name": "plain"}:  # the default
        return
    families = (PLAIN.name, RESIDUAL.name)
    if requested["name"] in families:
        # in the form that the card has them in
        resolved = as_dict(resolve(Architecture, requested, prefix="network."))
        requested = {name: resolved[name] for name in requested}
    if spec["name"] in families:
        # cards leave some defaults out
        spec = as_dict(resolve(Architecture, spec, prefix="network."))
    for name, value in requested.items():
        actual = spec.get(name)
        # a small crop leaves out the coarsest levels
        are_lists = isinstance(value, list) and isinstance(actual, list)
        is_shortened = are_lists and value[: len(actual or ())] == actual
        if value != actual and not is_shortened:
            raise UsageError(
                f"network: {settings.encoder} has {name} {actual}, not {value}; leave --network "
                "out, or pre-train with it"
            )


def _count_values(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
