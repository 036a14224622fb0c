"""Resampling between the foreground box of a scan and its prepared grid."""

from __future__ import annotations

import numpy as np

from selfvox.data.preparation.geometry import Geometry

_CUBIC_SAMPLES = 4  # a cubic B-spline needs so many along every axis


def resample_image(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """One channel (*space) of the box on the prepared grid, by cubic B-splines.

    The result is clipped to the range of the values, since a cubic overshoots at edges. Axes that
    shrink are smoothed first, otherwise fine detail would appear as noise (aliasing); sigma as in
    Cardoso et al. 2015.
    """
    if not geometry.is_resampled:
        return values
    from scipy.ndimage import gaussian_filter  # only here: not every recipe resamples

    low = values.min()
    high = values.max()
    # 0.4247 is 1 / (2 sqrt(2 ln 2)): from a width at half maximum to sigma
    sigma = [0.4247 * np.sqrt(max(step**2 - 1, 0)) for step in geometry.step]
    smooth = gaussian_filter(values, sigma, mode="nearest")
    cubic = min(values.shape) >= _CUBIC_SAMPLES
    resampled = _resample(smooth, geometry, back=False, cubic=cubic)
    return np.asarray(np.clip(resampled, low, high))


def resample_label(label: np.ndarray, geometry: Geometry, *, back: bool) -> np.ndarray:
    """A label (*space) from the box to the prepared grid, or `back`; dtype kept.

    Each class is resampled linearly and each voxel gets the class of the largest weight, so no new
    value can appear; of equal weights the smallest class wins.
    """
    if not geometry.is_resampled:
        return label
    best: np.ndarray | None = None
    for value in np.unique(label):
        mask = (label == value).astype(np.float32)
        weight = _resample(mask, geometry, back=back)
        if best is None:
            best = weight
            result = np.full(weight.shape, value, dtype=label.dtype)
        else:
            result[weight > best] = value
            best = np.maximum(best, weight)
    return result


def resample_probabilities_back(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Probabilities of one class (*space) from the prepared grid to the box, float32, linear."""
    return _resample(np.asarray(values, dtype=np.float32), geometry, back=True)


def _resample(
    values: np.ndarray, geometry: Geometry, *, back: bool, cubic: bool = False
) -> np.ndarray:
    """From the box to the prepared grid, or back; the outermost voxels are repeated beyond them."""
    if not geometry.is_resampled:
        return values
    # only here: not every recipe resamples; its own documentation calls it sitk
    import SimpleITK as sitk  # noqa: N813

    # positions are in voxels of the box; SimpleITK's axes are in reverse order
    box_shape = geometry.box_shape[::-1]
    prepared_shape = geometry.prepared_shape[::-1]
    step = geometry.step[::-1]
    offset = geometry.offset[::-1]
    unit = [1.0] * len(step)
    zero = [0.0] * len(step)

    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    image.SetSpacing(step if back else unit)
    image.SetOrigin(offset if back else zero)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(box_shape if back else prepared_shape)
    resampler.SetOutputSpacing(unit if back else step)
    resampler.SetOutputOrigin(zero if back else offset)
    resampler.SetInterpolator(sitk.sitkBSpline if cubic else sitk.sitkLinear)
    resampler.SetUseNearestNeighborExtrapolator(True)
    result: np.ndarray = sitk.GetArrayFromImage(resampler.Execute(image))
    return result
