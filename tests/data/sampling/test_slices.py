"""Crops of slices, from the store of the volumes."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selfvox.data.preparation.store import open_store
from selfvox.data.sampling.crop_size import SLICE_AXES, choose_crop, in_plane_cases, slice_axis
from selfvox.data.sampling.crops import TRIES, Crops
from selfvox.errors import UsageError

every_axis = pytest.mark.parametrize("name", SLICE_AXES)


@pytest.fixture(scope="module")
def store(shapes_store):
    return open_store(shapes_store)


@every_axis
def test_a_slice_crop_is_a_crop_of_one_slice_of_the_volume(store, name, monkeypatch):
    axis = SLICE_AXES[name]
    case = store.cases[0]
    # the value of every voxel is its position
    place = np.ravel_multi_index(np.indices(case.shape), case.shape).astype(np.float32)
    arrays = {
        "images": place[None],
        "labels": place.astype(np.int32),
        "foreground": store.foreground(case),
    }
    monkeypatch.setattr(type(store), "_array", lambda self, case, kind: arrays[kind])
    data = Crops(store, [case], (16, 8), 0, labels=True, foreground=0.5, axis=axis)
    levels = set()
    for sample in range(24):
        item = data[sample]
        first = list(np.unravel_index(int(item["image"][0, 0, 0]), case.shape))
        level = first.pop(axis)
        expected = np.take(place, level, axis)[first[0] : first[0] + 16, first[1] : first[1] + 8]
        assert np.array_equal(item["image"], expected[None])
        assert np.array_equal(item["label"], expected.astype(np.int32))
        levels.add(level)
    assert len(levels) > 8


@every_axis
def test_a_sample_does_not_depend_on_the_order_of_reading(store, name):
    data = Crops(store, store.cases, (16, 16), 0, axis=SLICE_AXES[name])
    repeated = Crops(store, store.cases, (16, 16), 0, axis=SLICE_AXES[name])
    expected = [data[sample]["image"] for sample in range(12)]
    assert all(
        torch.equal(repeated[sample]["image"], expected[sample]) for sample in reversed(range(12))
    )


@every_axis
def test_empty_slices_are_shown_only_if_there_are_no_others(store, name, monkeypatch):
    axis = SLICE_AXES[name]
    case = store.cases[0]
    read = type(store).crop

    def mostly_empty(self, case, start, size):
        """Of every four slices, three are constant."""
        image = read(self, case, start, size)
        return image if start[axis] % 4 == 0 else np.zeros_like(image)

    monkeypatch.setattr(type(store), "crop", mostly_empty)
    data = Crops(store, [case], (16, 16), 0, axis=axis)
    empty = np.mean([np.ptp(data[sample]["image"].numpy()) == 0 for sample in range(200)])
    assert empty < 3 * 0.75**8
    monkeypatch.setattr(
        type(store), "crop", lambda self, case, start, size: np.ones((1, *size), np.float32)
    )
    assert data[0]["image"].shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"size": (4, 4), "axis": 1}, TRIES),
        ({"size": (4, 4), "axis": 1, "labels": True}, 1),
        ({"size": (4, 4, 4)}, 1),
    ],
)
def test_a_constant_crop_is_read_again_only_for_slices_without_labels(settings, reads):
    starts = []

    def constant(case, start, size):
        starts.append(start)
        return np.ones((1, *size), np.float32)

    case = SimpleNamespace(subject="a", shape=(9, 9, 9), spacing_mm=(1.0, 1.0, 1.0))
    store = SimpleNamespace(crop=constant, label_crop=lambda case, start, size: np.zeros(size))
    Crops(store, [case], seed=0, **settings)[0]
    assert len(starts) == reads


@every_axis
def test_slices_have_the_shape_and_spacing_of_the_other_two_axes(store, name):
    axis = SLICE_AXES[name]
    case = dataclasses.replace(store.cases[0], shape=(20, 30, 40), spacing_mm=(1.0, 2.0, 3.0))
    flat = in_plane_cases([case], axis)[0]
    assert flat.shape == {0: (30, 40), 1: (20, 40), 2: (20, 30)}[axis]
    assert flat.spacing_mm == {0: (2.0, 3.0), 1: (1.0, 3.0), 2: (1.0, 2.0)}[axis]
    assert len(choose_crop(None, [flat])) == 2
    assert in_plane_cases([case], None) == [case]


def test_pictures_have_no_slices(store):
    pictures = in_plane_cases(store.cases, 0)
    assert slice_axis(None, pictures) is None
    with pytest.raises(UsageError, match=r"^slices: .* leave --slices out$"):
        slice_axis("axial", pictures)
