"""Calibrations on disk, next to the weights that they are of, and whether they fit passes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic

from selfvox.data.naming import printable
from selfvox.errors import DataError
from selfvox.runs.card import DropoutRates
from selfvox.runs.fold_folder import fold_runs
from selfvox.runs.progress import echo
from selfvox.runs.typed_json import parse, read_checked, write_checked
from selfvox.runs.weights import part_folder, read_network_card
from selfvox.uncertainty.conformal import promised_level
from selfvox.uncertainty.ensemble import PassSettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FILE = "calibration.json"


Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Rate = Annotated[float, pydantic.Field(ge=0, lt=1)]
Count = Annotated[int, pydantic.Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class AnyCalibration:
    """What calibrations of all kinds of networks say: what they were made with."""

    format: Literal[1] = 1
    network_sha256: str
    passes: Count  # 1: a plain prediction, without dropout
    encoder_dropout: Rate
    decoder_dropout: Rate
    dropout_kind: Literal["element", "channel"]
    seed: Annotated[int, pydantic.Field(ge=0)]
    scans: str  # which, in words
    cases: Count
    subjects: Count
    networks: Count = 1  # that measured: each of several, scans that it was not trained on
    level: Share  # that ranges, intervals and sets promise


class WholeScanCalibration(AnyCalibration):
    """What calibrations share whose networks give one answer for a whole scan."""

    def mismatch(self, settings: PassSettings, sha256: str) -> str | None:
        """Why it says nothing about such predictions of a network; None where it does."""
        reason = passes_mismatch(self, settings, sha256)
        if reason is None and (settings.passes > 1) != (self.passes > 1):
            kind = "several passes" if self.passes > 1 else "a single pass"
            return f"the run is calibrated for {kind}"
        return reason


def made_with(
    settings: PassSettings, sha256: str, scans: str, cases: int, subjects: int, networks: int
) -> dict[str, Any]:
    """The fields of `AnyCalibration`.

    Args:
        settings: of the passes that measured.
        sha256: of the network's weights; of several that measured, those of the first.
        scans: which scans were measured, in words.
        cases: how many these are.
        subjects: of how many people.
        networks: that measured, each its own scans.
    """
    return {
        "network_sha256": sha256,
        "passes": settings.passes,
        "encoder_dropout": settings.dropout.encoder,
        "decoder_dropout": settings.dropout.decoder,
        "dropout_kind": settings.dropout.kind,
        "seed": settings.dropout.seed,
        "scans": scans,
        "cases": cases,
        "subjects": subjects,
        "networks": networks,
        "level": promised_level(subjects),
    }


def passes_mismatch(made: AnyCalibration, settings: PassSettings, sha256: str) -> str | None:
    """Why a calibration says nothing about such passes of a network; None where it does.

    Args:
        made: the calibration.
        settings: of the passes; the dropout of a single pass does not count.
        sha256: of the network's weights.
    """
    if sha256 != made.network_sha256:
        return "the calibration in the run is of other weights"
    if settings.mirror:
        return "the run is calibrated without mirrored scans"
    dropout = settings.dropout
    rates = DropoutRates(dropout.encoder, dropout.decoder, dropout.kind)
    calibrated = DropoutRates(made.encoder_dropout, made.decoder_dropout, made.dropout_kind)
    if settings.passes > 1 and rates != calibrated:
        return f"the run is calibrated for dropout of {calibrated}"
    return None


def note_other_passes(calibrations: Sequence[AnyCalibration], settings: PassSettings) -> None:
    """Print that the promise is of other passes than these, where it is."""
    passes = (settings.passes, settings.dropout.seed)
    for made_with in dict.fromkeys((made.passes, made.seed) for made in calibrations):
        if settings.passes > 1 and made_with != passes:
            echo(
                f"calibrated with {made_with[0]} passes of seed {made_with[1]}: others may keep "
                "the promised level less exactly"
            )


def describe_origin(calibrations: Sequence[AnyCalibration]) -> str:
    """What networks were calibrated on, in words."""
    texts = []
    for made in calibrations:
        by = ""
        if made.networks > 1:
            by = f", each by one of {made.networks} networks that was not trained on it"
        texts.append(f"{made.subjects} subjects{by}: {printable(made.scans)}")
    return "; ".join(dict.fromkeys(texts))


def calibration_file(run: Path) -> Path:
    """Where the calibration of a run is: next to the weights that it is of."""
    return part_folder(run, "network") / FILE


def write_calibration(run: Path, calibration: DataclassInstance) -> Path:
    """Write the calibration of a run."""
    file = calibration_file(run)
    write_checked(file, asdict(calibration))
    return file


def is_calibrated(run: Path) -> bool:
    """Whether a run has a calibration of its weights."""
    file = calibration_file(run)
    try:
        made_of = read_checked(file).get("network_sha256") if file.exists() else None
    except DataError:
        return False  # damaged, and made again
    return made_of == read_network_card(run).sha256


Kind = TypeVar("Kind", bound="DataclassInstance")


def read_calibration(run: Path, kind: type[Kind]) -> Kind | None:
    """The calibration of a run, or None; keys that this version does not know are ignored.

    Args:
        run: a fine-tuning run.
        kind: `Calibration` of a segmenter, `ClassCalibration` of a classifier.

    Raises:
        DataError: the file is damaged, of another kind, or of a newer format.
    """
    file = calibration_file(run)
    if not file.exists():
        return None
    try:
        calibration: Kind = parse(kind, read_checked(file), str(file))
    except DataError as error:
        raise DataError(f"{error}; make it again: `selfvox calibrate {run}`") from None
    return calibration


def read_calibrations(
    runs: Sequence[Path], kind: type[Kind], mismatch: Callable[[Kind, int], str | None], lost: str
) -> tuple[Kind, ...] | None:
    """The calibrations of all networks; None, with the reason printed, if one cannot be used.

    Args:
        runs: of the networks that predict together.
        kind: as in `read_calibration`.
        mismatch: of a calibration and the number of its network, why it cannot be used.
        lost: what the predictions lack without, for the message.

    Raises:
        DataError: as `read_calibration`.
    """
    calibrations = []
    for number, run in enumerate(runs):
        calibration = read_calibration(run, kind)
        reason: str | None = f"{run} has no calibration"
        if calibration is not None:
            reason = mismatch(calibration, number)
            calibrations.append(calibration)
        if reason is not None:
            where = f" ({run})" if len(runs) > 1 and calibration is not None else ""
            command = f"selfvox calibrate {shlex.quote(str(_folder_of_folds(runs) or run))}"
            echo(
                f"{lost}, since {reason}{where}; `{command}` makes one, or `{command} LABELLED/` "
                "where too few subjects validated"
            )
            return None
    return tuple(calibrations)


def _folder_of_folds(runs: Sequence[Path]) -> Path | None:
    """The folder of folds that these are all runs of."""
    folder = runs[0].parent
    return folder if len(runs) > 1 and fold_runs(folder) == list(runs) else None
