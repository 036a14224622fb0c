"""Pseudo-labels: what the passes of a trained network agree on, in scans without labels.

- `records/KEY.json`: trust and volumes of one scan; written last, so a scan that has it is
  complete. The key follows from the contents of the scan, the weights and the settings.
- `cases/`, `images/`, `labels/`, `foreground/`: the scans with their pseudo-labels, as in a store.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from selfvox.data.preparation import store
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.models.segmenter import Segmenter
from selfvox.runs.atomic_files import remove_temporary_files, write_csv
from selfvox.runs.device import Fabric, inference_mode
from selfvox.runs.progress import echo, progress_bar
from selfvox.runs.typed_json import parse, read_checked, write_checked
from selfvox.training.pseudo_label_picture import draw_pseudo_labels
from selfvox.training.segmentation import Segmentation
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.mc_dropout import Dropout
from selfvox.uncertainty.passes import SubNetworks, run_passes
from selfvox.uncertainty.vote_rules import VOTE_RULES, VoteOptions

PASSES = 8
OVERLAP = 0.5  # of the windows, as in `predict`
# share of the passes that must agree on a voxel: at 6 of 8 the edges of structures are left out
LEAST_AGREEMENT = 0.75
# Dice of the passes with their vote, mean over the classes, below which a scan is left out: most of
# such a label is guessed. A bound that only excludes what went wrong; it was not tuned
LEAST_TRUST = 0.5
TABLE = "pseudo-labels.csv"
PICTURE = "pseudo-labels.png"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network that labels scans by passes of Monte-Carlo dropout.

    Args:
        network: on its device.
        sha256: of its weights.
        task: what its outputs mean, and the label value of voxels that are ignored.
        crop: edges of its windows in voxels.
        dropout: where and how units are dropped.
        fabric: device and arithmetic.
    """

    network: Segmenter
    sha256: str
    task: Segmentation
    crop: tuple[int, ...]
    dropout: Dropout
    fabric: Fabric

    def key(self, scan: StoredCase) -> str:
        """Hash of all that the pseudo-label of a scan follows from."""
        settings = (PASSES, OVERLAP, LEAST_AGREEMENT, self.task.ignored, self.crop, self.dropout)
        return store.hash_texts(scan.sha256["images"], self.sha256, str(settings))[:32]


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    """How far a pseudo-label can be trusted."""

    scan: str  # case id
    case: str  # id of the case that has the pseudo-label; empty where there is none
    trust: float  # see `trust_of`
    agreed: float  # share of the voxels that are trained on
    values: tuple[int, ...]  # classes above 0 that occur
    failure: str = ""  # why it is not used


@dataclass(frozen=True)
class PseudoLabels:
    """Scans with pseudo-labels that are trusted."""

    store: Store
    cases: tuple[StoredCase, ...]
    trained_teacher: tuple[StoredCase, ...] = ()  # scans of earlier rounds

    @property
    def seen(self) -> tuple[StoredCase, ...]:
        """All scans that a network learns from these pseudo-labels."""
        return (*self.cases, *self.trained_teacher)


def make_pseudo_labels(
    folder: Path, teacher: Teacher, scans: Store, labelled: Store, training: Sequence[StoredCase]
) -> PseudoLabels:
    """Label scans by several passes, and keep those that are trusted; prints how many.

    Finished scans in the folder are kept.

    Args:
        folder: of the pseudo-labels, the table and the picture.
        teacher: labels them.
        scans: without labels, or with labels that are not read.
        labelled: the labelled scans.
        training: those that trained the teacher.

    Raises:
        DataError: no pseudo-label can be trusted.
        ResourceError: the disk is full, or the device is out of memory.
    """
    for kind in ("", "records", "cases", "images", "labels", "foreground"):
        # of a process that was killed while it wrote
        remove_temporary_files(folder / kind)
    pseudo_labels = []
    with progress_bar("pseudo-labels", len(scans.cases), 0) as bar:
        for scan in scans.cases:
            pseudo_labels.append(check_trust(_read_or_make(folder, teacher, scans, scan)))
            bar.advance()
    rows = [list(dataclasses.astuple(entry)[:4]) for entry in pseudo_labels]
    for row, entry in zip(rows, pseudo_labels, strict=True):
        row.append(entry.failure)
    write_csv(folder / TABLE, ["scan", "case", "trust", "agreed", "left out"], rows)
    for entry in pseudo_labels:
        if entry.failure:
            echo(f"left out: {entry.scan}: {entry.failure}")
    used = [entry for entry in pseudo_labels if not entry.failure]
    if not used:
        raise DataError(
            f"{scans.path}: none of {len(pseudo_labels)} pseudo-labels can be trusted, see "
            f"{folder / TABLE}; leave --unlabelled out, or take {folder.parent}, the run of the "
            "network that made them"
        )
    cases = tuple(_read_case(folder, entry) for entry in used)
    with_labels = dataclasses.replace(labelled, path=folder, cases=cases)
    _report(folder, pseudo_labels, used)
    _warn_of_missing_classes(labelled, training, used)
    draw_pseudo_labels(
        folder / PICTURE,
        with_labels,
        [(case, entry.trust) for case, entry in zip(cases, used, strict=True)],
        [entry.scan for entry in used],
        teacher.task.ignored,
    )
    echo(f"picture of the pseudo-labels: {folder / PICTURE}")
    return PseudoLabels(with_labels, cases)


def check_trust(entry: PseudoLabel) -> PseudoLabel:
    """Mark a pseudo-label that is not trusted as a whole."""
    if not entry.failure and entry.trust < LEAST_TRUST:
        reason = f"trust {entry.trust:.2f} is below {LEAST_TRUST}"
        return dataclasses.replace(entry, failure=reason)
    return entry


def label_scan(teacher: Teacher, image: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """The majority vote of the passes over a scan (channel, *space).

    Returns:
        Label values (*space); the trust of the scan; and the share (*space) of the passes that
        agree with the label in each voxel: in the output where fewest do, which for classes is the
        share of the votes that the winner has.
    """
    task = teacher.task
    with inference_mode(teacher.fabric):
        data = teacher.fabric.to_device(torch.from_numpy(image))
        accumulator = VoteAccumulator(PASSES, task.labelling(), data.shape[1:], (), data.device)
        networks = SubNetworks(teacher.network, teacher.dropout, task.region_labels is not None)
        with networks:
            run_passes(
                networks,
                data,
                teacher.crop,
                OVERLAP,
                range(PASSES),
                accumulator.add,
                task.axis,
            )
        scores = accumulator.scores(VOTE_RULES["majority"], VoteOptions())
    label = task.decide(scores.cpu())
    return label, *_trust(label, accumulator, task.membership())


def _trust(
    label: np.ndarray, accumulator: VoteAccumulator, membership: np.ndarray
) -> tuple[float, np.ndarray]:
    """Trust of the scan, and share (*space) of the passes that agree in each voxel.

    Trust is the mean over the classes above 0, or the regions, of the Dice of all passes together
    with their vote, as in `predict`; but a class that no pass predicts is left out, since finding
    nothing is no evidence. Without any class it is 0.

    Args:
        label: (*space), the vote.
        accumulator: of all passes.
        membership: (output, label value) booleans.
    """
    passes = accumulator.passes
    agreeing = np.full(label.shape, passes, np.int64)
    dice = []
    for output, is_inside in enumerate(membership):
        ballots = accumulator.ballots[output].cpu().numpy().astype(np.int64)
        vote = is_inside[label]
        np.minimum(agreeing, np.where(vote, ballots, passes - ballots), out=agreeing)
        total = int(accumulator.voxels[:, output].sum()) + passes * int(vote.sum())
        is_background = bool(is_inside[0])
        if total and not is_background:
            dice.append(2 * int(ballots[vote].sum()) / total)
    return statistics.fmean(dice) if dice else 0.0, agreeing / passes


def _read_or_make(folder: Path, teacher: Teacher, scans: Store, scan: StoredCase) -> PseudoLabel:
    """The record of a scan; the scan is labelled if it is missing."""
    key = teacher.key(scan)
    file = folder / "records" / f"{key}.json"
    entry = _read_record(folder, file)
    if entry is not None:
        # the same contents may have another name now
        return dataclasses.replace(entry, scan=scan.id)
    try:
        image = scans.crop(scan, (0,) * len(scan.shape), scan.shape)
    except DataError as error:
        reason = " ".join(str(error).split())
        return PseudoLabel(scan=scan.id, case="", trust=0, agreed=0, values=(), failure=reason)
    label, trust, agreement = label_scan(teacher, image)
    is_agreed = agreement >= LEAST_AGREEMENT
    ignored = teacher.task.ignored
    assert ignored is not None
    highest = max(ignored, *teacher.task.classes)
    written = np.where(is_agreed, label, ignored).astype(np.uint8 if highest < 256 else np.uint16)
    values = tuple(int(value) for value in np.unique(label[is_agreed]) if value)
    case = dataclasses.replace(
        scan,
        id=key,
        has_label=True,
        label_values=values,
        grade=None,
        source_hash=store.hash_texts("pseudo-label", key),
        sources=(),
        sha256={},
        notes=(),
    )
    prepared = PreparedScan(
        data=image,
        spacing_mm=scan.spacing_mm,
        affine=np.array(scan.affine),
        geometry=scan.geometry,
    )
    store.write_case(folder, case, prepared, written, ignored)
    entry = PseudoLabel(
        scan=scan.id, case=key, trust=trust, agreed=float(is_agreed.mean()), values=values
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_checked(file, dataclasses.asdict(entry))
    return entry


def _read_record(folder: Path, file: Path) -> PseudoLabel | None:
    """The record of a scan, if it is complete and its case is intact."""
    if not file.exists():
        return None
    try:
        entry: PseudoLabel = parse(PseudoLabel, read_checked(file), str(file))
    except DataError:
        return None
    case = store.read_entry(folder, entry.case)
    return entry if case is not None and store.is_intact(folder, case) else None


def _read_case(folder: Path, entry: PseudoLabel) -> StoredCase:
    case = store.read_entry(folder, entry.case)
    assert case is not None, "its record is written after it"
    return case


def _report(
    folder: Path, pseudo_labels: Sequence[PseudoLabel], used: Sequence[PseudoLabel]
) -> None:
    trust = statistics.median(entry.trust for entry in used)
    agreed = statistics.median(entry.agreed for entry in used)
    echo(
        f"{len(used)} of {len(pseudo_labels)} scans have pseudo-labels that are trusted: the "
        f"passes agree with their vote by a Dice of {trust:.2f}, and {100 * agreed:.1f} % of the "
        f"voxels train (medians); table: {folder / TABLE}"
    )


def _warn_of_missing_classes(
    labelled: Store, training: Sequence[StoredCase], used: Sequence[PseudoLabel]
) -> None:
    """Warn of classes that the teacher does not know: pseudo-labels then teach their absence."""
    values = {value for entry in used for value in entry.values}
    taught = {value for case in training for value in case.label_values if value}
    names = [str((labelled.classes or {}).get(value, value)) for value in sorted(taught - values)]
    if names:
        echo(
            f"warning: {', '.join(names)}: in no pseudo-label, so that these teach its absence; "
            "train with larger --class-weights, or leave --unlabelled out"
        )
