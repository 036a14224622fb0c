"""What several tests stand on: a small store of shapes, made once."""

import pytest

import selfvox
from selfvox.data import phantom

CROP = (16, 16, 16)
SMALL = {"network": {"name": "plain", "channels": [4, 8]}, "crop": CROP, "device": "cpu"}


@pytest.fixture(scope="session")
def shapes_store(tmp_path_factory):
    """Eight labelled volumes of 24 voxels, prepared; two subjects for testing, two for validation."""
    folder = tmp_path_factory.mktemp("shapes")
    phantom.write(folder / "scans", "shapes", count=8)
    selfvox.prepare(folder / "scans", out=folder / "store", test=2, validation=2, workers=1)
    return folder / "store"


@pytest.fixture
def small():
    """Settings of a network and crops that take milliseconds."""
    return dict(SMALL)
