"""Class numbers of a label: whole, within 16 bits, and among the classes that are declared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from selfvox.errors import DataError

_ROUNDING = 1e-5  # a slope such as 1/255 leaves 1.0000001
_BLOCK_VOXELS = 2**16
_WHITE = 255  # of a mask that a drawing program saved
_MOST_CLASSES = 512  # of an undeclared atlas
# of a mask with smoothed edges: how bright its white is, how many values are at its edges at least,
# and which share of it they are at most
_WHITE_FROM = 128
_SMOOTH_VALUES = 6
_MOST_SMOOTHED = 0.2


def class_numbers(
    values: np.ndarray, name: str, slope: float = 1.0
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers in the smallest unsigned type, and a note where they were rounded.

    Args:
        values: as they were read, scaled.
        name: of the file, for messages.
        slope: that scaled the stored whole numbers; what was saved with it is off by up to half
            of it, as programs that save floating numbers into the header of whole ones leave it.

    Raises:
        DataError: values that are not whole, not finite, negative or too large.
    """
    notes: tuple[str, ...] = ()
    if values.dtype.kind == "f":
        values, largest_error = _rounded(values, name, slope)
        if largest_error > _ROUNDING:
            notes = (
                f"class numbers were off by up to {largest_error:.2g} and are rounded: its header "
                f"scales the stored numbers by {slope:.3g}",
            )
    low = values.min()
    high = values.max()
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise DataError(
            f"{name}: label values from {low:g} to {high:g}; class numbers are 0 to 65535"
        )
    return values.astype(smallest_unsigned(int(high)), copy=False), notes


def check_declared(label: np.ndarray, classes: Collection[int], name: str) -> None:
    """Refuse values other than those of the classes.

    Raises:
        DataError: lists them.
    """
    unexpected = sorted(set(values_of(label)) - set(classes))
    if not unexpected:
        return
    listed = ", ".join(map(str, unexpected[:10]))
    if len(unexpected) > 10:
        listed += ", ..."
    declared = ", ".join(map(str, sorted(classes)))
    raise DataError(
        f"{name}: unexpected label values {listed}; declared are {declared}: "
        "correct one or the other"
    )


def check_undeclared(label: np.ndarray, name: str) -> list[str]:
    """Refuse what can hardly be a label, where no classes are declared; notes on a doubtful one.

    Raises:
        DataError: it has more values than an atlas, or is a mask with smoothed edges.
    """
    counts = _counts(label)
    values = np.flatnonzero(counts)
    if len(values) > _MOST_CLASSES:
        raise DataError(
            f"{name}: has {len(values)} different values, more than any atlas; is it a scan rather "
            "than a label? Correct the pair, or declare its classes in a dataset.json"
        )
    by_count = values[np.argsort(counts[values])][::-1]
    main, others = by_count[:2], by_count[2:]
    share = counts[others].sum() / label.size
    # drawing programs smooth the edge between black and white; classes that are counted from 0 up
    # have no such white
    is_black_and_white = set(main) >= {0} and main.max() >= _WHITE_FROM
    if is_black_and_white and len(others) >= _SMOOTH_VALUES and share < _MOST_SMOOTHED:
        raise DataError(
            f"{name}: a mask of 0 and {main.max()} with {len(others)} values between them at its "
            f"edges ({100 * share:.1f} % of it): smoothed by a drawing program; save it without "
            "anti-aliasing, or declare its classes in a dataset.json"
        )
    if main[0] != 0 and counts[main[0]] > label.size / 2:
        return [f"most of its label is {main[0]}, while 0 counts as the background"]
    return []


def two_numbers_of_one_class(labels: Sequence[Collection[int]]) -> str | None:
    """What is wrong with masks of which some have 0 and 1, others 0 and 255; None of all others.

    Args:
        labels: the values of each, where no classes are declared.
    """
    counts = Counter(value for values in labels for value in {*values} - {0})
    both = sum({1, _WHITE} <= {*values} for values in labels)
    if set(counts) != {1, _WHITE} or both:
        return None
    return (
        f"{counts[1]} labels have the class 1, {counts[_WHITE]} have {_WHITE}, none has both: "
        "write one number for one class, declare two classes in a dataset.json, or leave the "
        "labels out with --source folder:none"
    )


def values_of(label: np.ndarray) -> list[int]:
    """The values that occur in a label of up to 16 bits, in order."""
    return [int(value) for value in np.flatnonzero(_counts(label))]


def _counts(label: np.ndarray) -> np.ndarray:
    """How many voxels have each value that the type of the label has room for."""
    values = 2 ** (8 * label.dtype.itemsize)
    counts = np.zeros(values, np.int64)
    flat = label.ravel(order="K")
    # in blocks: counting makes eight bytes of each voxel
    for start in range(0, flat.size, _BLOCK_VOXELS):
        counts += np.bincount(flat[start : start + _BLOCK_VOXELS], minlength=values)
    return counts


def smallest_unsigned(largest: int) -> type[np.unsignedinteger]:
    """The smallest unsigned type for numbers up to `largest`."""
    if largest < 2**8:
        return np.uint8
    return np.uint16 if largest < 2**16 else np.uint32


def _rounded(values: np.ndarray, name: str, slope: float) -> tuple[np.ndarray, float]:
    """Whole numbers, and how far the values were from them at most."""
    unusable = int(values.size - np.count_nonzero(np.isfinite(values)))
    if unusable:
        raise DataError(
            f"{name}: {unusable} values are NaN or infinite where class numbers are expected; "
            "set them to 0, or to their class"
        )
    rounded = np.rint(values)
    errors = np.abs(values - rounded)
    largest_error = float(errors.max())
    # float32 has 24 bits: half a quantum of the slope is not met to the last digit
    tolerance = max(_ROUNDING, 0.501 * abs(slope) if abs(slope) < 1 else 0.0)
    if largest_error > tolerance:
        example = values.flat[int(errors.argmax())]
        cause = f" (its header scales by {slope:.3g})" if slope != 1 else ""
        raise DataError(
            f"{name}: label values such as {example:.6g} are not whole numbers{cause}; "
            "save class numbers, without interpolation"
        )
    return rounded, largest_error
