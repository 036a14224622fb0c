"""The network as a teacher: it labels unlabelled scans, and a new one learns from them too.

Self-training (Lee 2013, "Pseudo-label") with the trust of Monte-Carlo dropout (paper B 2.3): only
voxels and scans on which the passes agree are trained on.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

from torch import nn

from selfvox.data.preparation.store import Store
from selfvox.models.segmenter import Segmenter
from selfvox.registration.transfer import LEAST_DICE
from selfvox.runs.checkpoints import CHECKPOINTS
from selfvox.runs.progress import echo
from selfvox.runs.run_folder import METRICS, Run, open_run, read_run_record
from selfvox.runs.weights import load_strictly, read_network, read_network_card
from selfvox.training.finetune_network import FinetuneNetwork
from selfvox.training.finetune_run import FinetuneJob, ignoring_task, train_network
from selfvox.training.pseudo_labels import PASSES, PseudoLabels, Teacher, make_pseudo_labels
from selfvox.training.segmentation import Segmentation
from selfvox.uncertainty.ensemble import UNTRAINED, PassSettings, describe_passes
from selfvox.uncertainty.mc_dropout import Dropout

# what a training leaves in its folder
_TRAINED = (CHECKPOINTS, "network", "tensorboard", METRICS)
_LOST = ("lost_classes", "lost_classes_saved", "lost_problem")


def teach_by_network(run: Run, job: FinetuneJob, scans: Store) -> PseudoLabels | None:
    """Train teachers, each in a folder of the run; returns the pseudo-labels of the last one.

    None where the validation Dice of a teacher is too low: the run then has the first teacher's
    checkpoints, so that its training is complete. A teacher or a scan that is complete is not made
    again, so that a killed run continues.

    Args:
        run: of the last training, which the caller starts.
        job: what all trainings have in common.
        scans: to label.

    Raises:
        SelfvoxError: as `finetune`; or no pseudo-label can be trusted.
    """
    pseudo_labels = None
    for number in range(1, job.settings.rounds + 1):
        folder = run.path / f"teacher-{number}"
        echo(f"training {number} of {job.settings.rounds + 1}, of a teacher: {folder}")
        network = _train_teacher(run, job, folder, pseudo_labels)
        score = read_network_card(folder).score
        if score is not None and score < LEAST_DICE:
            echo(
                f"the network does not teach: its validation Dice of {score:.2f} is below "
                f"{LEAST_DICE}, so its labels would mislead; the first network is kept"
            )
            if job.fabric.is_global_zero:
                _copy_training(run.path / "teacher-1", run.path)
            job.fabric.barrier()
            _keep_first_teacher(run)
            return None
        pseudo_labels = _label(network, job, folder, scans, pseudo_labels)
    echo(f"training {job.settings.rounds + 1}, from the same start: {run.path}")
    assert pseudo_labels is not None
    return pseudo_labels


def _copy_training(teacher: Path, run: Path) -> None:
    """Take the training of a teacher as that of the run: it would give the same weights."""
    for name in _TRAINED:
        source = teacher / name
        if source.is_dir():
            shutil.copytree(source, run / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copyfile(source, run / name)


def _keep_first_teacher(run: Run) -> None:
    """Record that nobody teaches, and what the first teacher has lost."""
    record = read_run_record(run.path / "teacher-1")
    # last, since a resumed run then goes on without a teacher
    others = {"network": "none", "both": "atlas"}
    facts = {name: record[name] for name in _LOST if name in record}
    run.note(teacher=others[run.record["teacher"]], **facts)


def _train_teacher(
    run: Run, job: FinetuneJob, folder: Path, pseudo_labels: PseudoLabels | None
) -> FinetuneNetwork:
    """Train a teacher as a run of its own.

    Args:
        run: of the last training; the number of steps is recorded there.
        job: what all trainings have in common.
        folder: of the teacher.
        pseudo_labels: of the teacher before.
    """
    # the module of the caller is for the last training
    start = copy.deepcopy(job.start) if isinstance(job.start, nn.Module) else job.start
    # of a teacher that is complete, this only loads the last checkpoint
    with open_run(folder, job.settings, resume=True) as teacher_run:
        steps = run.record.get("steps")
        built = train_network(replace(job, start=start), teacher_run, steps, pseudo_labels).built
    run.note(steps=built.steps)
    return built


def _label(
    built: FinetuneNetwork,
    job: FinetuneJob,
    folder: Path,
    scans: Store,
    pseudo_labels: PseudoLabels | None,
) -> PseudoLabels:
    """Label the scans with a teacher that is trained.

    Args:
        built: the teacher; it gets the weights that its run keeps.
        job: what all trainings have in common.
        folder: of the teacher.
        scans: to label.
        pseudo_labels: of the teacher before.
    """
    network = built.network
    tensors, card = read_network(folder)
    load_strictly(network, tensors, str(folder))
    network.eval()
    assert isinstance(network, Segmenter)
    assert isinstance(job.task, Segmentation)
    rates = job.task.dropout or UNTRAINED
    dropout = Dropout(rates.encoder, rates.decoder, rates.kind, job.settings.seed)
    describe_passes(PassSettings(passes=PASSES, dropout=dropout), [job.task.dropout])
    teacher = Teacher(
        network=network,
        sha256=card.sha256,
        task=ignoring_task(job),
        crop=built.crop,
        dropout=dropout,
        fabric=job.fabric,
    )
    made = make_pseudo_labels(folder / "pseudo-labels", teacher, scans, job.store, job.training)
    # a scan that is left out now has taught the teacher
    return replace(made, trained_teacher=() if pseudo_labels is None else pseudo_labels.seen)
