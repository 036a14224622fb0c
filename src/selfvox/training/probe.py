"""A probe: how well labels can be predicted from a frozen encoder's features."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfvox.data.preparation.leakage import content_hashes
from selfvox.data.preparation.split import Split, choose_subset, make_split
from selfvox.data.preparation.store import Store
from selfvox.data.preparation.stored_case import StoredCase
from selfvox.data.sampling.crop_size import slice_axis as find_slice_axis
from selfvox.data.sampling.crop_size import volume_edges
from selfvox.data.sampling.crops import Crops
from selfvox.errors import DataError
from selfvox.models.build import load_encoder
from selfvox.models.encoder import Encoder

# subjects to learn from, and subjects to be scored on, at most
MAX_VOXEL_SUBJECTS = 10  # where voxels are classified
MAX_IMAGE_SUBJECTS = 50  # where whole images are
CROPS_PER_CASE = 4
FOREGROUND_SHARE = 0.75  # of the crops, so that small classes are met
VOXELS = 6000  # to learn from, and as many to be scored on
NEIGHBOURS = 10
CROPS_AT_ONCE = 4  # in one pass of the encoder
MAX_ITERATIONS = 100  # of logistic regression


def probe(
    encoder: Encoder,
    store: Store,
    training: Sequence[StoredCase],
    test: Sequence[StoredCase],
    crop: Sequence[int],
    seed: int,
    slice_axis: int | None = None,
) -> dict[str, float]:
    """Balanced accuracy on `test` of classifiers fitted to the frozen features of `training`.

    Where all cases have label maps, single voxels are classified, by the encoder's maps at their
    places; else whole scans by their grade, from the embedding of their central crop. Features are
    standardised. The encoder, its mode and torch's random generators are left as they are.

    Args:
        encoder: on the device where it computes.
        store: of the cases, prepared as the encoder's scans were.
        training: to learn from.
        test: to be scored on; of other subjects.
        crop: edges of what the encoder is shown, in voxels.
        seed: of the crops and the voxels.
        slice_axis: the crops are of slices along this axis, for a 2D encoder.

    Returns:
        `linear` (logistic regression), `knn` (nearest neighbours), and `chance`, the score of
        random guesses.
    """
    has_labels = all(case.has_label for case in (*training, *test))
    features_of = voxel_features if has_labels else image_features
    with frozen_encoder(encoder):
        x, y = features_of(encoder, store, training, crop, seed, slice_axis)
        x_test, y_test = features_of(encoder, store, test, crop, seed, slice_axis)
    return classify(x, y, x_test, y_test)


def probe_run(
    run: Path, store: Store, labels: int, seed: int, device: str = "cpu"
) -> dict[str, float]:
    """Probe a finished pre-training run; the store's validation subjects are scored.

    Args:
        run: with an `encoder/` folder.
        store: prepared as the run's scans were, with labels.
        labels: how many subjects to learn from.
        seed: of the choice of these subjects, the crops and the voxels.
        device: where to compute.

    Raises:
        WeightsError: the encoder is missing or damaged.
        DataError: too few labels.
        UsageError: `labels` is more than there are.
    """
    encoder, card = load_encoder(run)
    axis = find_slice_axis(card.slices, store.cases)
    training, test = split_probe_cases(store, (), seed, labels)
    return probe(encoder.to(device), store, training, test, card.crop, seed, axis)


def split_probe_cases(
    store: Store,
    held_out: Sequence[StoredCase],
    seed: int,
    labels: int | None = None,
    *,
    scans: Path | None = None,
) -> tuple[list[StoredCase], list[StoredCase]]:
    """Cases to learn from and cases to be scored on, never those of test subjects.

    The store's split decides which is which; without one, half of the subjects are scored.

    Args:
        store: with label maps, or else with grades.
        held_out: test cases of another store, left out by subject and by contents.
        seed: of the choice.
        labels: how many subjects to learn from; by default as many as make a quick probe.
        scans: what the store was prepared from, for messages.

    Raises:
        DataError: fewer than two subjects can be used.
    """
    has_labels = any(case.has_label for case in store.cases)
    split = store.split()
    test_subjects = {case.subject for case in held_out}
    test_hashes = {digest for case in held_out for digest in content_hashes(case)}
    cases = [
        case
        for case in store.without_test_subjects()
        if (case.has_label if has_labels else case.grade is not None)
        and case.subject not in test_subjects
        and not content_hashes(case) & test_hashes
    ]
    usable = {case.subject for case in cases}
    if len(usable) < 2:
        raise DataError(
            f"{scans or store.path}: has labels of {len(usable)} subjects that are not for "
            "testing, and a probe takes at least two; name more labelled scans"
        )
    if split is None or not usable & set(split.validation) or not usable & set(split.train):
        split = make_split(usable, 0, len(usable) // 2, 0)
    limit = MAX_VOXEL_SUBJECTS if has_labels else MAX_IMAGE_SUBJECTS
    training = _choose_subjects(usable.intersection(split.train), seed, limit, labels)
    scored = _choose_subjects(usable.intersection(split.validation), seed, limit)
    return (
        [case for case in cases if case.subject in training],
        [case for case in cases if case.subject in scored],
    )


def _choose_subjects(
    subjects: set[str], seed: int, limit: int, count: int | None = None
) -> set[str]:
    """`count` subjects, by default `limit` or all there are."""
    candidates = Split(train=tuple(sorted(subjects)), validation=(), test=(), seed=0)
    return set(choose_subset(candidates, seed, count or min(limit, len(subjects))))


@contextlib.contextmanager
def frozen_encoder(encoder: Encoder) -> Iterator[None]:
    """The encoder in evaluation mode, without gradients.

    A compiled one runs uncompiled, so that it is not compiled a second time.
    """
    is_training = encoder.training
    encoder.eval()
    # PyTorch has no public way to ask a module whether it is compiled
    is_compiled = getattr(encoder, "_compiled_call_impl", None) is not None
    eager = torch.compiler.set_stance("force_eager") if is_compiled else contextlib.nullcontext()
    try:
        with torch.no_grad(), eager:
            yield
    finally:
        encoder.train(is_training)


def voxel_features(
    encoder: Encoder,
    store: Store,
    cases: Sequence[StoredCase],
    crop: Sequence[int],
    seed: int,
    slice_axis: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Features and label values of voxels of random crops, as many of each class as can be.

    The maps of all levels but the coarsest are read: of the coarsest, even a random encoder's
    features show where in the crop a voxel is.

    Returns:
        (voxel, channels of the levels) and (voxel,).
    """
    crops = Crops(
        store, cases, crop, seed, labels=True, foreground=FOREGROUND_SHARE, axis=slice_axis
    )
    count = CROPS_PER_CASE * len(cases)
    device = next(encoder.parameters()).device
    features: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for first in range(0, count, CROPS_AT_ONCE):
        items = [crops[sample] for sample in range(first, min(first + CROPS_AT_ONCE, count))]
        maps = encoder(torch.stack([item["image"] for item in items]).to(device))
        # an encoder of one level keeps it
        maps = maps[:-1] or maps
        for number, item in enumerate(items):
            rng = np.random.default_rng((seed, 2, first + number))
            label = item["label"].numpy()
            voxels = _draw_voxels(label, max(1, VOXELS // count), rng)
            sampled = sample_maps([level[number] for level in maps], voxels, crop)
            features.append(sampled.float().cpu().numpy())
            values.append(label[tuple(voxels.T)])
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
    device = next(encoder.parameters()).device
    edges = volume_edges(crop, slice_axis)
    embeddings = []
    for first in range(0, len(cases), CROPS_AT_ONCE):
        images = [_central_crop(store, case, edges) for case in cases[first:][:CROPS_AT_ONCE]]
        batch = torch.from_numpy(np.stack(images)).view(len(images), -1, *crop).to(device)
        # NumPy has no bf16
        embeddings.append(encoder.embed(batch).float().cpu().numpy())
    return np.concatenate(embeddings), np.array([case.grade for case in cases])


def _central_crop(store: Store, case: StoredCase, edges: Sequence[int]) -> np.ndarray:
    start = [(length - edge) // 2 for length, edge in zip(case.shape, edges, strict=True)]
    return store.crop(case, start, edges)


def sample_maps(maps: Sequence[Tensor], voxels: np.ndarray, crop: Sequence[int]) -> Tensor:
    """The values of maps at some voxels of the crop, interpolated linearly.

    The same as `F.interpolate` to the crop's grid, but only at these voxels.

    Args:
        maps: one (channel, *space) per level.
        voxels: (voxel, d) integers.
        crop: edges of the grid.

    Returns:
        (voxel, channels of all levels).
    """
    d = len(crop)
    # a voxel's centre, in coordinates from -1 to 1 over the whole crop
    centres = torch.from_numpy((2 * voxels + 1) / np.array(crop) - 1).float().to(maps[0].device)
    grid = centres.flip(1).view(1, *(1,) * (d - 1), -1, d)  # grid_sample names the last axis first
    sampled = []
    for level in maps:
        values = F.grid_sample(
            level[None].float(), grid, padding_mode="border", align_corners=False
        )
        sampled.append(values.flatten(2)[0].T)
    return torch.cat(sampled, 1)


def classify(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> dict[str, float]:
    """Balanced accuracy on the test samples of two classifiers fitted to (x, y).

    Args:
        x: (sample, feature).
        y: (sample,) integers.
        x_test: (sample, feature).
        y_test: (sample,) integers.

    Returns:
        `linear` (logistic regression), `knn` (nearest neighbours), and `chance`: one over the
        number of classes, or less where some of the test's classes are not among `y`.

    Raises:
        DataError: `y` has a single class.
    """
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            "probe: all labels to learn from are the same; name scans with several classes"
        )
    # only here: scikit-learn takes seconds, and only --probe needs it
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    # fitted to the training samples alone: the test must not shift them
    scaler = StandardScaler().fit(x)
    x = scaler.transform(x)
    x_test = scaler.transform(x_test)
    with warnings.catch_warnings():
        # the same number of iterations for every encoder, whether it converges or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        linear = LogisticRegression(max_iter=MAX_ITERATIONS, class_weight="balanced").fit(x, y)
    # a class with fewer samples than half of the neighbours would never be predicted
    knn = KNeighborsClassifier(min(NEIGHBOURS, int(counts.min()))).fit(x, y)
    # a guess is one of the classes in `y`, and never right for another class
    share_known = float(np.isin(np.unique(y_test), classes).mean())
    return {
        "linear": balanced_accuracy(linear.predict(x_test), y_test),
        "knn": balanced_accuracy(knn.predict(x_test), y_test),
        "chance": share_known / len(classes),
    }


def balanced_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of correct predictions of each class of the truth, mean over the classes."""
    recalls = [(predicted[truth == value] == value).mean() for value in np.unique(truth)]
    return float(np.mean(recalls))


def _draw_voxels(label: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """About `count` voxels (voxel, d), as many of each class in the label map as can be."""
    values = np.unique(label)
    # otherwise nearly all voxels would be background
    per_class = max(1, count // len(values))
    drawn = []
    for value in values:
        candidates = np.flatnonzero(label == value)
        drawn.append(rng.choice(candidates, min(len(candidates), per_class), replace=False))
    return np.stack(np.unravel_index(np.concatenate(drawn), label.shape), axis=1)
