"""Unlabelled scans in a fine-tuning: prepared, without those held out, and by whom they are taught.

The atlas teaches by copies of the labelled scans that wear the anatomies of unlabelled ones, the
network by pseudo-labels.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfvox.data.preparation.build_store import build_store
from selfvox.data.preparation.manifest import is_store
from selfvox.data.preparation.open_or_build_store import find_scans
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import Store, open_store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.errors import DataError, UsageError
from selfvox.registration.copies import Copies, CopyRequest, make_copies
from selfvox.registration.pairs import keep_usable
from selfvox.registration.register import check_installed
from selfvox.registration.transfer import carries_labels
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import Run
from selfvox.runs.weights import read_network_card
from selfvox.settings.verbs import Finetune
from selfvox.training.pseudo_labels import PASSES

MOST_SCANS = 100  # that the network labels: each costs several passes


@dataclass(frozen=True)
class Teaching:
    """What unlabelled scans bring to a fine-tuning."""

    copies: Copies | None = None  # by the atlas
    scans: Store | None = None  # for the network to label


def teach(
    run: Run,
    settings: Finetune,
    store: Store,
    split: Split,
    training: Sequence[StoredCase],
    validation: Sequence[StoredCase],
    place: Path,
) -> Teaching:
    """Prepare the unlabelled scans, choose who teaches them, and make the copies of the atlas.

    Nothing without the setting `unlabelled`. Prints the choice and its reason; a resumed run keeps
    it.

    Args:
        run: of the last training; the choice is recorded there.
        settings: of the verb.
        store: the labelled scans.
        split: who trains, validates and tests.
        training: the cases that train.
        validation: the cases that validate.
        place: where the unlabelled scans are prepared, in the folder `unlabelled`: once for all
            folds.

    Raises:
        DataError: the unlabelled scans cannot be used.
        UsageError: nothing shows who should teach; or greedy is not installed, and the setting or
            the resumed run needs it.
        ResourceError: the disk is full.
    """
    if settings.unlabelled is None:
        return Teaching()
    check_teacher(settings, len({case.subject for case in [*training, *validation]}))
    prepared = _prepare(settings.unlabelled, place / "unlabelled", settings, store)
    usable = keep_usable(prepared, store, split)
    folder = settings.out / "copies"
    teacher = run.record.get("teacher")
    if teacher is None:
        # of an earlier run that failed: it may have learnt from other scans
        for earlier in run.path.glob("teacher-*"):
            shutil.rmtree(earlier)
        teacher = _choose_teacher(folder, settings, store, training, validation)
        run.note(teacher=teacher)
    copies = None
    if teacher in ("atlas", "both"):
        check_installed()
        request = CopyRequest(
            store=store,
            training=training,
            unlabelled=usable,
            registrations=settings.registrations,
            seed=settings.seed,
            workers=settings.workers,
        )
        copies = make_copies(folder, request)
    if teacher not in ("network", "both"):
        return Teaching(copies)
    scans = _draw(usable, settings.seed)
    _announce(scans, settings.rounds)
    return Teaching(copies, scans)


def check_teacher(settings: Finetune, subjects: int) -> None:
    """Refuse that the labelled scans choose a teacher where there is nothing to compare.

    Args:
        settings: of the verb.
        subjects: that train or validate.

    Raises:
        UsageError: the teacher is `auto`, and there is a single one.
    """
    if settings.unlabelled is not None and settings.teacher == "auto" and subjects < 2:
        raise UsageError(
            "teacher: with one labelled subject nothing shows who should teach; give --teacher "
            "atlas for anatomy that all people have, --teacher network for lesions"
        )


def report_gain(run: Path, teaching: Teaching, validation: int) -> None:
    """Print what the validation scans show of the gain by unlabelled scans, or that nothing does.

    A network that taught was trained without its own pseudo-labels, so its score is the comparison.
    For copies there is none: it would be one more training.

    Args:
        run: of the last training.
        teaching: what it learnt from.
        validation: number of scans that validate.
    """
    if teaching.copies is None and teaching.scans is None:
        return
    card = read_network_card(run)
    name = card.score_name.replace("_", " ")
    if card.score is None:
        echo(
            "nothing shows whether --unlabelled helps here, since no labelled scan is left to "
            "validate; it helped in some measured runs, and did harm in others"
        )
        return
    if teaching.scans is not None:
        teacher = run / "teacher-1"
        before = read_network_card(teacher).score
        assert before is not None, "the same scans validate it"
        echo(
            f"validation {name} of {validation} scans: {before:.3f} before the network taught "
            f"itself, {card.score:.3f} after"
        )
        if card.score < before:
            echo(f"it did not help here: `selfvox predict {shlex.quote(str(teacher))}` is better")
    if teaching.copies is not None:
        echo(
            f"whether the copies help is not measured: train without --unlabelled and compare "
            f"its validation {name} with {card.score:.3f}"
        )


def _choose_teacher(
    folder: Path,
    settings: Finetune,
    store: Store,
    training: Sequence[StoredCase],
    validation: Sequence[StoredCase],
) -> str:
    """The teacher: atlas, network, both or none; prints the choice.

    Raises:
        UsageError: greedy is not installed, and the setting asks for it.
        ResourceError: the disk is full.
    """
    can_register = _can_register(settings)
    with_atlas = can_register and carries_labels(
        folder, store, training, validation, settings.workers
    )
    if settings.teacher == "auto":
        teacher = "atlas" if with_atlas else "network"
        echo(f"the teacher of the unlabelled scans: {teacher} (--teacher overrides)")
        return teacher
    if with_atlas or not can_register:
        return settings.teacher
    if settings.teacher == "both":
        echo("only the network teaches")
        return "network"
    echo("--unlabelled is not used")
    return "none"


def _can_register(settings: Finetune) -> bool:
    """Whether the atlas may teach.

    Raises:
        UsageError: it shall, and greedy is not installed.
    """
    if settings.teacher == "network":
        return False
    try:
        check_installed()
    except UsageError as error:
        if settings.teacher != "auto":
            raise
        echo(str(error))
        return False
    return True


def _draw(scans: Store, seed: int) -> Store:
    """At most `MOST_SCANS` of the scans, drawn by the seed, in their order."""
    count = len(scans.cases)
    if count <= MOST_SCANS:
        return scans
    # 6 sets these numbers apart from those of the pairs and the samples
    drawn = np.random.default_rng((seed, 6)).permutation(count)[:MOST_SCANS]
    echo(f"{MOST_SCANS} of these {count} unlabelled scans are drawn for the network")
    return dataclasses.replace(scans, cases=tuple(scans.cases[number] for number in sorted(drawn)))


def _announce(scans: Store, rounds: int) -> None:
    """Print what the network as a teacher costs."""
    voxels = sum(int(np.prod(case.shape)) for case in scans.cases)
    echo(
        f"the network teaches: {rounds + 1} trainings instead of one, and before each but the "
        f"first, {PASSES} passes over {len(scans.cases)} scans ({voxels / 1e6:.3g} million voxels)"
    )


def _prepare(scans: Path, out: Path, settings: Finetune, labelled: Store) -> Store:
    """Unlabelled scans, prepared in `out` by the recipe of the labelled ones; labels are ignored.

    Of a store, without the test and validation subjects of its own split.

    Raises:
        DataError: they are prepared in another way already, or no scan can be used.
    """
    if is_store(scans):
        ready = open_store(scans)
        if not ready.recipe.is_equivalent(labelled.recipe):
            raise DataError(
                f"{scans}: was prepared in another way than the labelled scans; name the scans, "
                "not the store"
            )
        return _without_held_out(ready)
    preparation = settings
    if scans.resolve() != settings.labelled.resolve():
        # these scans may have another layout than the labelled ones
        preparation = dataclasses.replace(settings, source="auto")
    dataset = find_scans(scans, out, preparation)
    channels = len(dataset.channel_names)
    if channels != len(labelled.recipe.channel_names):
        raise DataError(
            f"{scans}: has {channels} channels where the labelled scans have "
            f"{len(labelled.recipe.channel_names)}; name scans with the same channels"
        )
    cases = tuple(
        dataclasses.replace(case, label=None, grade=None, target=None) for case in dataset.cases
    )
    return build_store(
        dataclasses.replace(dataset, cases=cases, classes=None, regions=None),
        out,
        preparation,
        labelled.recipe,
    )


def _without_held_out(unlabelled: Store) -> Store:
    """The store without the test and validation subjects of its split; prints their number."""
    split = unlabelled.split()
    validation = set(split.validation) if split else set()
    cases = tuple(
        case for case in unlabelled.without_test_subjects() if case.subject not in validation
    )
    left_out = len(unlabelled.cases) - len(cases)
    if left_out:
        echo(
            f"{left_out} test or validation scans of {unlabelled.path} are left out of the "
            "unlabelled ones"
        )
    return dataclasses.replace(unlabelled, cases=cases)
