"""What several tests stand on: a small store of shapes, made once."""

import os

# before torch is imported, and for all that tests start: processes of several threads each wait for one another, which
# made some of the tests fifty times as slow on busy cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

from types import SimpleNamespace

import matplotlib.legend
import pytest

import selfvox
from selfvox.data import phantom

CROP = (16, 16, 16)
SMALL = {"network": {"name": "plain", "channels": [4, 8]}, "crop": CROP, "device": "cpu"}


@pytest.fixture(scope="session", autouse=True)
def slow_to_place_legends():
    """Each legend takes hours to place: matplotlib warns after a second of it, of any legend without a `loc`."""
    hours = iter(range(0, 10**9, 3600))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.legend, "time", SimpleNamespace(perf_counter=lambda: next(hours)))
        yield


@pytest.fixture(scope="session")
def shapes_store(tmp_path_factory):
    """Eight labelled volumes of 32 voxels, prepared; two subjects for testing, two for validation."""
    folder = tmp_path_factory.mktemp("shapes")
    phantom.write(folder / "scans", "shapes", count=8)
    selfvox.prepare(folder / "scans", out=folder / "store", test=2, validation=2, workers=1)
    return folder / "store"


@pytest.fixture
def small():
    """Settings of a network and crops that take milliseconds."""
    return dict(SMALL)
