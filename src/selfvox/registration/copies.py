"""Copies of labelled scans, moved onto the anatomies of unlabelled scans, to train on."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError
from selfvox.registration.pairs import choose_pairs
from selfvox.registration.picture import draw_pairs
from selfvox.registration.registered_pairs import PairJob, RegisteredPair, copies_of, register_pairs
from selfvox.registration.transfer import label_classes, only
from selfvox.runs.atomic_files import write_csv
from selfvox.runs.progress import echo, format_seconds

# factors of the displacement, one copy each: from halfway between both anatomies to the other one
STRENGTHS = (0.5, 0.75, 1.0)
# of a registration on one core: 8.6 to 13.5 s a million voxels (benchmarks/registration.py)
SECONDS_PER_VOXEL = 1.2e-5
# a class with a volume that differs by more from its median over the other copies was not
# registered; the ventricles of the old have three times the volume of those of the young
VOLUME_FACTOR = 5.0
TABLE = "registrations.csv"
PICTURE = "copies.png"


@dataclass(frozen=True)
class Copies:
    """Copies of labelled scans, and the unlabelled scans with their anatomies."""

    store: Store
    cases: tuple[StoredCase, ...]
    anatomies: tuple[StoredCase, ...]


@dataclass(frozen=True, kw_only=True)
class CopyRequest:
    """What copies are made of.

    Args:
        store: the labelled scans.
        training: those that train.
        unlabelled: other scans, prepared by the same recipe.
        registrations: at most so many.
        seed: of the choice of pairs.
        workers: processes; 0: one per core.
    """

    store: Store
    training: Sequence[StoredCase]
    unlabelled: Store
    registrations: int
    seed: int
    workers: int


def make_copies(folder: Path, request: CopyRequest) -> Copies:
    """Register labelled to unlabelled scans and move copies of them.

    Finished pairs in the folder are kept.

    Args:
        folder: of the pairs, the copies, the table and the picture.
        request: scans and settings.

    Raises:
        DataError: no registration can be used.
        ResourceError: the disk is full.
        UsageError: greedy is not installed.
    """
    anatomies = request.unlabelled.cases
    classes = label_classes(request.store)
    jobs = [
        PairJob(
            folder=folder,
            moving_store=only(request.store, moving),
            moving=moving,
            fixed_store=only(request.unlabelled, fixed),
            fixed=fixed,
            strengths=STRENGTHS,
            classes=tuple(classes),
        )
        for moving, fixed in choose_pairs(
            request.training, anatomies, request.registrations, request.seed
        )
    ]
    _announce(jobs, len(anatomies))
    pairs = check_volumes(
        register_pairs(jobs, request.workers, "registering"), list(classes.values())
    )
    _write_table(folder / TABLE, pairs, classes)
    used = [pair for pair in pairs if not pair.failure]
    for pair in pairs:
        if pair.failure:
            echo(f"left out: {pair.labelled} moved onto {pair.unlabelled}: {pair.failure}")
    if not used:
        raise DataError(
            f"{request.unlabelled.path}: none of {len(pairs)} registrations can be used, see "
            f"{folder / TABLE}; leave --unlabelled out"
        )
    cases = tuple(case for pair in used for case in copies_of(folder, pair))
    names = {pair.unlabelled for pair in used}
    copies = Copies(
        store=dataclasses.replace(request.store, path=folder, cases=cases),
        cases=cases,
        anatomies=tuple(case for case in anatomies if case.id in names),
    )
    _report(folder, request, copies, used)
    return copies


def check_volumes(pairs: Sequence[RegisteredPair], names: Sequence[str]) -> list[RegisteredPair]:
    """Mark pairs with carried classes of implausible volumes, compared with the other pairs.

    A volume is compared as a share of that in the labelled scan.

    Args:
        pairs: registered.
        names: of the classes above 0, in the order of the volumes.
    """
    shares = [
        [after / before if before else 1.0 for before, after in _volumes(pair)] for pair in pairs
    ]
    checked = []
    for number, pair in enumerate(pairs):
        others = [
            values
            for place, values in enumerate(shares)
            if place != number and values and not pairs[place].failure
        ]
        failure = pair.failure
        # a median of one other copy would say nothing about which of both is wrong
        if not failure and len(others) >= 2:
            medians = np.median(others, axis=0)
            for name, share, median in zip(names, shares[number], medians, strict=True):
                if not median / VOLUME_FACTOR <= share <= median * VOLUME_FACTOR:
                    failure = (
                        f"{name} has {share:.2f} times its labelled volume, where the other "
                        f"copies have {median:.2f} times"
                    )
        checked.append(dataclasses.replace(pair, failure=failure))
    return checked


def _volumes(pair: RegisteredPair) -> list[tuple[int, int]]:
    return list(zip(pair.volumes, pair.warped_volumes, strict=True))


def _announce(jobs: Sequence[PairJob], anatomies: int) -> None:
    voxels = sum(int(np.prod(job.fixed.shape)) for job in jobs)
    seconds = voxels * SECONDS_PER_VOXEL * len(jobs[0].fixed_store.recipe.channel_names)
    labelled = len({job.moving.id for job in jobs})
    echo(
        f"{len(jobs)} registrations of {labelled} labelled to "
        f"{len({job.fixed.id for job in jobs})} of {anatomies} unlabelled scans: about "
        f"{format_seconds(seconds)} on one core (fewer: --registrations)"
    )


def _report(
    folder: Path, request: CopyRequest, copies: Copies, used: Sequence[RegisteredPair]
) -> None:
    before = statistics.median(pair.similarity_before for pair in used)
    after = statistics.median(pair.similarity for pair in used)
    echo(
        f"{len(copies.cases)} copies on {len(copies.anatomies)} anatomies; correlation with them "
        f"{before:.2f} before and {after:.2f} after registration (medians); table: "
        f"{folder / TABLE}"
    )
    picture = folder / PICTURE
    draw_pairs(picture, request.store, request.unlabelled, copies.store, used)
    echo(f"picture of the copies: {picture}")


def _write_table(table: Path, pairs: Sequence[RegisteredPair], classes: Mapping[int, str]) -> None:
    names = list(classes.values())
    header = ["labelled", "unlabelled", "used", "reason", "similarity before", "similarity"]
    header += ["folded", *(f"{name} volume share" for name in names)]
    rows = []
    for pair in pairs:
        shares = [after / before if before else float("nan") for before, after in _volumes(pair)]
        # a failed registration has no volumes
        shares += [float("nan")] * (len(names) - len(shares))
        row = [pair.labelled, pair.unlabelled, not pair.failure, pair.failure]
        rows.append([*row, pair.similarity_before, pair.similarity, pair.folded, *shares])
    write_csv(table, header, rows)
