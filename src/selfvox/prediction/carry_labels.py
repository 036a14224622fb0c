"""Labels carried onto scans by registration: several labelled scans vote for each scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfvox.data.formats import image as images
from selfvox.data.formats.image import Image
from selfvox.data.preparation import parallel
from selfvox.data.preparation.geometry import Geometry
from selfvox.data.preparation.leakage import content_hashes
from selfvox.data.preparation.likeness import CoarsePictures, coarse_picture
from selfvox.data.preparation.prepare_case import (
    Rejected,
    image_hash,
    main_file,
    make_rejected,
    read_case,
)
from selfvox.data.preparation.recipe import PreparedScan
from selfvox.data.preparation.scan_profile import measure_profile
from selfvox.data.preparation.scan_range import ScanRange, describe_differences
from selfvox.data.preparation.store import Store, hash_texts, image_digest
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sources import Case
from selfvox.errors import DataError
from selfvox.prediction import output_folder
from selfvox.prediction.case_files import CaseFiles
from selfvox.prediction.output_folder import CHANNEL_NAMES, OutputFolder
from selfvox.prediction.work_record import Workplace
from selfvox.registration import register
from selfvox.registration.registered_pairs import read_label, read_scan
from selfvox.runs.progress import echo, progress_bar
from selfvox.runs.stop_signals import stop_on_signal
from selfvox.uncertainty.accumulator import VoteAccumulator
from selfvox.uncertainty.labelling import ClassLabelling
from selfvox.uncertainty.review import review_votes
from selfvox.uncertainty.review_table import write_review
from selfvox.uncertainty.vote_rules import VOTE_RULES, VoteOptions, winner


@dataclass(frozen=True)
class CarryJob:
    """A scan and the labelled scans that may vote for it: the work of one worker process."""

    case: Case
    labelled: Store  # with the possible atlases alone
    atlases: int  # at most so many vote


@dataclass(frozen=True)
class CarriedLabels:
    """The labels of several atlases on the prepared grid of one scan."""

    labels: np.ndarray  # (atlas, *space)
    geometry: Geometry
    spacing_mm: tuple[float, ...]
    failures: tuple[str, ...]  # atlases that cannot be registered to this scan, and why
    unlike: str | None = None  # in what the scan is unlike the labelled ones


def carry_labels(job: CarryJob) -> CarriedLabels | Rejected:
    """Register the atlases that are most like a scan to it, and carry their labels.

    Labelled scans of the same subject or the same contents do not vote, nor does one that the scan
    is a resampled copy of: what is predicted for a labelled scan comes from the others.

    Raises:
        UsageError: greedy is not installed.
    """
    try:
        return _carry(job)
    except MemoryError:
        return make_rejected(job.case, "needs more memory than there is; use fewer --workers")
    except DataError as error:
        return make_rejected(job.case, str(error))


def _carry(job: CarryJob) -> CarriedLabels:
    recipe = job.labelled.recipe
    image = read_case(job.case, len(recipe.channel_names))
    prepared = recipe.apply(image)
    labels = []
    failures = []
    for atlas in _most_similar(job, prepared):
        moving = read_scan(job.labelled, atlas)
        try:
            registration = register.register(
                moving, prepared.data, atlas.spacing_mm, prepared.spacing_mm
            )
        except DataError as error:
            # the others can still vote
            failures.append(f"{atlas.id}: {error}")
            continue
        label = read_label(job.labelled, atlas)
        labels.append(register.warp_label(label, registration.positions()))
    if not labels:
        raise DataError(f"no labelled scan can be registered to it ({failures[0]})")
    return CarriedLabels(
        np.stack(labels),
        prepared.geometry,
        prepared.spacing_mm,
        tuple(failures),
        _describe_unlike(job, image, prepared),
    )


def _describe_unlike(job: CarryJob, image: Image, prepared: PreparedScan) -> str | None:
    """In what a scan is far outside of the labelled ones; None if it is not."""
    labelled = [case.profile for case in job.labelled.cases if case.profile is not None]
    if not labelled:
        return None
    spans = ScanRange.of(labelled, job.labelled.recipe.channel_names)
    profile = measure_profile(image, prepared.data, prepared.geometry, job.case.modality)
    comparison = spans.compare(profile)
    if not comparison.is_far:
        return None
    return f"unlike the labelled scans: {describe_differences(comparison.differences)}"


def _most_similar(job: CarryJob, prepared: PreparedScan) -> list[StoredCase]:
    """The labelled scans that correlate best with a scan where their centres coincide.

    Raises:
        DataError: every labelled scan is of the same subject.
    """
    # the prepared voxels stay the same if a file is compressed again or turned
    contents = {image_hash(job.case), image_digest(prepared)}
    picture = coarse_picture(prepared.data)
    others = [
        atlas
        for atlas in job.labelled.cases
        if atlas.subject != job.case.subject
        and not content_hashes(atlas) & contents
        and CoarsePictures([atlas.coarse_picture]).find(picture) is None
    ]
    if not others:
        raise DataError(
            f"{main_file(job.case)}: every labelled scan is of this subject; give other scans"
        )
    if len(others) <= job.atlases:
        return others

    def likeness(atlas: StoredCase) -> float:
        positions = register.centred_positions(
            atlas.shape, prepared.data.shape[1:], atlas.spacing_mm, prepared.spacing_mm
        )
        moved = register.warp_image(read_scan(job.labelled, atlas), positions)
        return register.similarity(moved, prepared.data)

    return sorted(others, key=likeness, reverse=True)[: job.atlases]


class AtlasPredictions:
    """The folder of carried labels: the vote of the atlases, and how far they agree.

    Args:
        out: the folder.
        labelled: the possible atlases.
        atlases: at most so many vote for a scan.
    """

    def __init__(self, out: Path, labelled: Store, atlases: int):
        self.folder = OutputFolder(CaseFiles(out))
        self.labelled = labelled
        self._workplace = Workplace(labelled.path.name, torch.device("cpu"))
        self.atlases = atlases
        self.classes = labelled.classes or {}
        contents = [f"{case.id} {case.source_hash}" for case in labelled.cases]
        self.card: dict[str, Any] = {
            # what `predict` calls the hash of its network: other labels are other predictions
            "network_sha256": hash_texts(register.SETTINGS, *contents),
            CHANNEL_NAMES: list(labelled.recipe.channel_names),
            "atlases": atlases,
        }

    def write(self, case: Case, carried: CarriedLabels) -> None:
        """Write the vote on the scan's own grid, and record it.

        Raises:
            DataError: the scan cannot be read any more.
        """
        # read again: the worker sends the labels alone
        image = read_case(case, len(self.labelled.recipe.channel_names))
        label, review = self._vote(carried)
        images.write_label(self.folder.files.label_file(case), label, image, self.classes)
        for failure in carried.failures:
            echo(f"{case.id}: without the atlas {failure}")
        notes = [*image.notes, *carried.failures]
        if carried.unlike is not None:
            echo(f"{case.id}: {carried.unlike}; check its labels")
            notes.append(carried.unlike)
        self.folder.record(case, self._workplace.facts(), review=review, notes=notes)

    def write_review(self) -> None:
        """Write which scans to review first, where several atlases voted."""
        reviews = self.folder.reviews()
        if reviews:
            table = self.folder.path / output_folder.REVIEW_TABLE
            write_review(table, reviews, self.classes)
            echo(f"review these first: {table}")

    def _vote(self, carried: CarriedLabels) -> tuple[np.ndarray, Mapping[str, Any] | None]:
        """The majority on the scan's own grid, and the agreement; None of a single atlas."""
        values = np.array(sorted(self.classes))
        labelling = ClassLabelling(len(values))
        atlases = len(carried.labels)
        space = carried.labels.shape[1:]
        accumulator = VoteAccumulator(atlases, labelling, space, set(), torch.device("cpu"))
        for number, label in enumerate(carried.labels):
            votes = torch.from_numpy(label == values.reshape(-1, *(1,) * label.ndim))
            accumulator.add(number, (), votes.float())
        scores = accumulator.scores(VOTE_RULES["majority"], VoteOptions())
        decided = winner(scores)
        recipe = self.labelled.recipe
        if carried.geometry.is_resampled:
            # where voxels change their size, each class's share is resampled and then decides
            shares = (scores / scores.sum(0)).numpy()
            written = values[recipe.undo_probabilities(shares, carried.geometry).argmax(0)]
        else:
            written = recipe.undo(values[decided.numpy()], carried.geometry)
        written = written.astype(carried.labels.dtype)
        if atlases == 1:
            return written, None
        review = review_votes(
            accumulator,
            decided,
            written,
            self.classes,
            carried.spacing_mm,
            carried.geometry.step,
            self.labelled.regions,
        )
        return written, review


def carry_to_scans(
    cases: Sequence[Case], predictions: AtlasPredictions, workers: int
) -> Sequence[Case]:
    """Predict each case and write it; predictions that the folder contains already are kept.

    Args:
        cases: scans.
        predictions: the folder, and the labelled scans.
        workers: processes; 0: one per core.

    Returns:
        The cases, as the folder names them.

    Raises:
        UsageError: the folder contains other predictions, or greedy is not installed.
        BusyError: another process is predicting into it.
        DataError: at least one scan could not be predicted; the others were.
        Stopped: a signal came; finished predictions are kept.
    """
    folder = predictions.folder
    with folder.lock(), stop_on_signal(folder.path):
        regions = predictions.labelled.regions
        cases, todo = folder.open(cases, predictions.card, predictions.classes, regions)
        with folder.rejecting(len(cases)) as rejected:
            _carry_to_scans(todo, len(cases), predictions, workers, rejected)
            predictions.write_review()
    return cases


def _carry_to_scans(
    todo: Sequence[Case],
    total: int,
    predictions: AtlasPredictions,
    workers: int,
    rejected: list[Rejected],
) -> None:
    """Predict each case and write it; those that cannot be used are added to `rejected`."""
    jobs = [CarryJob(case, predictions.labelled, predictions.atlases) for case in todo]
    with progress_bar("atlas", total, total - len(todo)) as bar:
        for number, carried in parallel.run(carry_labels, jobs, workers):
            case = todo[number]
            if isinstance(carried, parallel.WorkerDiedError):
                carried = make_rejected(case, "the process died, most likely of too little memory")
            if not isinstance(carried, Rejected):
                try:
                    predictions.write(case, carried)
                except DataError as error:
                    carried = make_rejected(case, str(error))
            if isinstance(carried, Rejected):
                rejected.append(carried)
                echo(f"{carried.file}: {carried.reason}")
            bar.advance(f"{len(rejected)} rejected" if rejected else "")
