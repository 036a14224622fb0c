"""Planes: which have equal spacing, and how a setting names them."""

import pytest

from selfvox.errors import UsageError
from selfvox.ops import planes


def test_equal_edges_cuts_only_the_axes_that_mix():
    assert planes.equal_edges((40, 56, 48), (0, 1)) == (40, 40, 48)
    assert planes.equal_edges((40, 56, 48), ()) == (40, 56, 48)


def test_planes_of_equal_spacing():
    assert planes.equal_spacing((1.0, 1.02, 3.0)) == [(0, 1)]
    assert planes.equal_spacing((1.0, 1.0)) == [(0, 1)]
    assert planes.equal_spacing((1.0, 2.0, 3.0)) == []


def test_a_plane_is_of_equal_spacing_only_if_it_is_in_every_scan():
    assert planes.equal_spacing((1.0, 1.0, 5.0), (2.0, 2.0, 2.0)) == [(0, 1)]
    assert planes.equal_spacing((0.5, 0.5, 5.0), (4.5, 0.5, 0.5)) == []


def test_planes_are_read_as_they_are_written():
    all_planes = [(0, 1), (0, 2), (1, 2)]
    for chosen in (all_planes, [(0, 2)], all_planes[1:]):
        assert planes.read_planes(planes.plane_names(chosen), 3) == chosen
    assert planes.read_planes("all", 3) == all_planes
    assert planes.read_planes("none", 3) == []


def test_a_plane_named_twice_counts_once():
    assert planes.read_planes("xy, yx,XY", 3) == [(0, 1)]


@pytest.mark.parametrize(("text", "d"), [("xw", 3), ("xz", 2), ("", 3), ("xx", 3)])
def test_a_name_that_is_not_a_plane_is_refused(text, d):
    with pytest.raises(UsageError, match=r"task\.planes"):
        planes.read_planes(text, d)


def test_a_refusal_quotes_the_name_as_it_was_written():
    assert planes.read_planes("yx, XZ,xy", 3) == [(0, 1), (0, 2)]
    with pytest.raises(UsageError, match="'inplane' is not a plane of a 3D image"):
        planes.read_planes("xy, inplane", 3)
