"""A probe: how well labels can be told from a frozen encoder's features, by a linear classifier and by neighbours."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from selfvox.data.preparation.split import Split, choose_subset, make_split
from selfvox.data.preparation.store import Store, StoredCase
from selfvox.data.sampling.crop_size import slice_axis, volume_edges
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError
from selfvox.models.build import build_encoder
from selfvox.models.encoder import Encoder
from selfvox.runs.weights import load_part, load_strictly

SUBJECTS = {
    "voxels": 10,
    "images": 50,
}  # at most so many to learn from, and so many to be scored on
CROPS_PER_CASE = 4
FOREGROUND_SHARE = 0.75  # of the crops, so that small classes are met
VOXELS = 6000  # to learn from, and to be scored on; evenly of the classes in each crop
NEIGHBOURS = 10
TOGETHER = 4  # crops in one pass of the encoder


def probe(
    encoder: Encoder,
    store: Store,
    training: Sequence[StoredCase],
    test: Sequence[StoredCase],
    crop: Sequence[int],
    seed: int,
    slice_axis: int | None = None,
) -> dict[str, float]:
    """Balanced accuracy on `test` of classifiers that learnt from the frozen features of `training`.

    Where all cases have label maps, single voxels are classified, each by the maps at its place, of every level but the
    coarsest, which can tell where in the crop a voxel lies however little was learnt; else whole scans by their grade,
    from the embedding of their central crop. Features are standardised. The encoder, its mode and all random streams of
    torch are left as they are.

    Args:
        encoder: on the device where it computes.
        store: holds the cases, prepared as the encoder's scans were.
        training: to learn from.
        test: to be scored on; of other subjects.
        crop: edges of what the encoder is shown, in voxels.
        seed: of the crops and the voxels.
        slice_axis: of a 2D encoder's: its crops are of slices along this axis.

    Returns:
        `linear` (logistic regression), `knn` (nearest neighbours), and `chance`, which guessing scores.
    """
    read = voxel_features if all(case.has_label for case in (*training, *test)) else image_features
    with frozen_encoder(encoder):
        (x, y), (x_new, y_new) = (
            read(encoder, store, cases, crop, seed, slice_axis) for cases in (training, test)
        )
    return classify(x, y, x_new, y_new)


def probe_run(
    run: Path, store: Store, labels: int, seed: int, device: str = "cpu"
) -> dict[str, float]:
    """Probe a finished pre-training run: learn from `labels` subjects of a store, be scored on its validation subjects.

    Args:
        run: holds `encoder/`.
        store: prepared as the run's scans were, with labels.
        labels: how many subjects to learn from, drawn by `seed`.
        seed: of that draw, the crops and the voxels.
        device: where to compute.

    Raises:
        WeightsError: there is no whole encoder.
        DataError: too few labels.
        UsageError: more subjects are asked for than there are.
    """
    tensors, card = load_part(
        run / "encoder", "encoder", needs=("network", "spatial_dims", "in_channels", "crop")
    )
    axis = slice_axis(card.get("slices"), store.cases)
    encoder = build_encoder(card["network"], card["spatial_dims"], card["in_channels"])
    load_strictly(encoder, tensors, f"{run}")
    training, validation = split_probe_cases(store, (), seed, labels)
    return probe(encoder.to(device), store, training, validation, card["crop"], seed, axis)


def split_probe_cases(
    store: Store,
    held_out: Sequence[StoredCase],
    seed: int,
    labels: int | None = None,
    *,
    scans: Path | None = None,
) -> tuple[list[StoredCase], list[StoredCase]]:
    """Cases to learn from and cases to be scored on, never those of test subjects.

    A store's split says who trains and validates; without one, half of the subjects are scored.

    Args:
        store: with label maps, or else with grades.
        held_out: cases that are for testing elsewhere; left out by subject and by contents.
        seed: of the draw.
        labels: how many subjects to learn from; by default as many as make a quick probe.
        scans: what the store was prepared from, for refusals.

    Raises:
        DataError: fewer than two subjects can be used.
    """
    kind = "voxels" if any(case.has_label for case in store.cases) else "images"
    subjects, hashes = {case.subject for case in held_out}, {case.image_hash for case in held_out}
    split = store.split()
    cases = [
        case
        for case in store.without_test_subjects()
        if (case.has_label if kind == "voxels" else case.grade is not None)
        and case.subject not in subjects
        and case.image_hash not in hashes
    ]
    usable = {case.subject for case in cases}
    if len(usable) < 2:
        raise DataError(
            f"{scans or store.path}: has labels of {len(usable)} subjects that are not for testing, and a probe takes "
            "at least two; name more labelled scans"
        )
    if split is None or not usable & set(split.validation) or not usable & set(split.train):
        split = make_split(usable, 0, len(usable) // 2, 0)
    drawn = []
    for part, wanted in ((split.train, labels), (split.validation, None)):
        there = Split(
            train=tuple(subject for subject in part if subject in usable),
            validation=(),
            test=(),
            seed=0,
        )
        drawn.append(
            set(choose_subset(there, seed, wanted or min(SUBJECTS[kind], len(there.train))))
        )
    training, scored = ([case for case in cases if case.subject in some] for some in drawn)
    return training, scored


@contextlib.contextmanager
def frozen_encoder(encoder: Encoder) -> Iterator[None]:
    """The encoder in evaluation mode, without gradients and, if it is compiled, without compiling it once more."""
    training = encoder.training
    encoder.eval()
    # PyTorch has no public way to ask a module whether it is compiled
    compiled = getattr(encoder, "_compiled_call_impl", None) is not None
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    try:
        with torch.no_grad(), eager:
            yield
    finally:
        encoder.train(training)


def voxel_features(
    encoder: Encoder,
    store: Store,
    cases: Sequence[StoredCase],
    crop: Sequence[int],
    seed: int,
    slice_axis: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Features (voxel, channels of all levels but the coarsest), label values (voxel,); evenly of a crop's classes."""
    crops = Crops(
        store, cases, crop, seed, labels=True, foreground=FOREGROUND_SHARE, axis=slice_axis
    )
    count = CROPS_PER_CASE * len(cases)
    device = next(encoder.parameters()).device
    features, values = [], []
    for first in range(0, count, TOGETHER):
        items = [crops[sample] for sample in range(first, min(first + TOGETHER, count))]
        maps = encoder(torch.stack([item["image"] for item in items]).to(device))
        maps = maps[:-1] or maps
        for number, item in enumerate(items):
            rng = np.random.default_rng((seed, 2, first + number))
            label = item["label"].numpy()
            places = _draw(label, max(1, VOXELS // count), rng)
            features.append(
                sample_maps([each[number] for each in maps], places, crop).float().cpu().numpy()
            )
            values.append(label[tuple(places.T)])
    return np.concatenate(features), np.concatenate(values)


def image_features(
    encoder: Encoder,
    store: Store,
    cases: Sequence[StoredCase],
    crop: Sequence[int],
    seed: int,
    slice_axis: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (case, width) of the central crops, and grades (case,)."""
    device, edges = next(encoder.parameters()).device, volume_edges(crop, slice_axis)
    embeddings = []
    for first in range(0, len(cases), TOGETHER):
        images = [
            store.crop(
                case,
                [(have - want) // 2 for have, want in zip(case.shape, edges, strict=True)],
                edges,
            )
            for case in cases[first : first + TOGETHER]
        ]
        shown = torch.from_numpy(np.stack(images)).view(len(images), -1, *crop).to(device)
        embeddings.append(encoder.embed(shown).float().cpu().numpy())
    return np.concatenate(embeddings), np.array([case.grade for case in cases])


def sample_maps(maps: Sequence[Tensor], places: np.ndarray, crop: Sequence[int]) -> Tensor:
    """What maps hold at some voxels of the crop, brought to its grid linearly (as `F.interpolate`), but only there.

    Args:
        maps: one (channel, *space) per level.
        places: (voxel, d) integers.
        crop: edges of the grid.

    Returns:
        (voxel, channels of all levels).
    """
    d = len(crop)
    at = torch.from_numpy((2 * places + 1) / np.array(crop) - 1).float().to(maps[0].device)
    grid = at.flip(1).view(1, *(1,) * (d - 1), -1, d)  # grid_sample names the last axis first
    sampled = [
        F.grid_sample(each[None].float(), grid, padding_mode="border", align_corners=False)
        .flatten(2)[0]
        .T
        for each in maps
    ]
    return torch.cat(sampled, 1)


def classify(
    x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray
) -> dict[str, float]:
    """Balanced accuracy on (x_new, y_new) of logistic regression and nearest neighbours that learnt from (x, y).

    Args:
        x: (sample, feature).
        y: (sample,) integers.
        x_new: other samples.
        y_new: theirs.

    Returns:
        `linear`, `knn`, and `chance`: one over the number of classes; less where some were not there to be learnt.
    """
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            "probe: all labels to learn from are the same; name scans with several classes"
        )
    scaler = StandardScaler().fit(x)
    x, x_new = scaler.transform(x), scaler.transform(x_new)
    with warnings.catch_warnings():
        # as good as a hundred steps make it: the same for every encoder
        warnings.simplefilter("ignore", ConvergenceWarning)
        linear = LogisticRegression(max_iter=100, class_weight="balanced").fit(x, y)
    # a class of fewer samples than half of the neighbours would never be answered
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, int(counts.min()))).fit(x, y)
    return {
        "linear": balanced_accuracy(linear.predict(x_new), y_new),
        "knn": balanced_accuracy(neighbours.predict(x_new), y_new),
        # a guess is one of the classes learnt, and never right of another
        "chance": float(np.isin(np.unique(y_new), classes).mean()) / len(classes),
    }


def balanced_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of correct answers of each class of the truth, mean over the classes."""
    return float(
        np.mean([(predicted[truth == value] == value).mean() for value in np.unique(truth)])
    )


def _draw(label: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places (voxel, d) of about `count` voxels, as many of each class that is there."""
    values = np.unique(label)
    drawn = []
    for value in values:
        there = np.flatnonzero(label == value)
        drawn.append(
            rng.choice(there, min(len(there), max(1, count // len(values))), replace=False)
        )
    return np.stack(np.unravel_index(np.concatenate(drawn), label.shape), axis=1)
