"""Label maps among scans: recognised by their voxels where names say nothing."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from selfvox.commands.prepare import prepare
from selfvox.data import sources
from selfvox.data.formats import image as images
from selfvox.data.preparation.label_maps import label_map_evidence
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError
from selfvox.settings.verbs import Prepare

from ...conftest import write_scan

SHARED = Path("../shared/data")
needs_scans = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans are not here")
SHAPE = (24, 20, 16)


def balls(values, radius=5, shape=SHAPE):
    """A label map with one ball per value."""
    label = np.zeros(shape, np.int16)
    rng = np.random.default_rng(len(values))
    for value in values:
        centre = [rng.integers(radius, edge - radius) for edge in shape]
        distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
        label[distance <= radius] = value
    return label


def scan(seed=0, levels=256, shape=SHAPE):
    """A scan of so many grey levels: a body in the air, with noise; whole numbers."""
    rng = np.random.default_rng(seed)
    body = balls([1], 7, shape) > 0
    values = (rng.normal(0.5, 0.1, shape) * (levels - 1)).clip(1, levels - 1)
    return np.where(body, values, 0).round().astype(np.int16)


@pytest.mark.parametrize(
    "label",
    [
        balls([1]),
        balls([255]),
        balls([1], radius=1),  # a small lesion is hardly uniform
        1 - balls([1]),
        balls(range(1, 60), radius=4, shape=(48, 40, 40)),  # an atlas
        balls([3, 1000, 2035]).astype(np.float32),
    ],
)
def test_a_label_map_is_recognised(label):
    assert label_map_evidence(label[None])
    # in whatever order in memory
    assert label_map_evidence(np.asfortranarray(label)[None])


def test_a_smoothed_mask_is_recognised():
    """As drawing programs and JPEG leave it: few voxels have another value than 0 and 255."""
    mask = 255 * balls([1], 40, (160, 128)).astype(np.float32)
    smoothed = np.rint(ndimage.gaussian_filter(mask, 0.5))
    assert len(np.unique(smoothed)) > 10
    assert label_map_evidence(smoothed[None])


@pytest.mark.parametrize(
    "image",
    [
        scan(),
        scan(levels=16),
        np.where(scan() > 0, scan(), 0).astype(np.float32),  # without the skull
        scan() / 3,
        ndimage.gaussian_filter(scan().astype(float), 2).round(),
        np.zeros(SHAPE),
    ],
)
def test_a_scan_is_none(image):
    expected = len(np.unique(image)) == 1  # a constant image is refused for that
    assert bool(label_map_evidence(image[None])) is expected


def test_all_channels_have_to_look_like_labels():
    """The blue of an eye may have nine values; a mask in colours has few in each."""
    assert label_map_evidence(np.stack([balls([1]), balls([200]), balls([90])]))
    assert not label_map_evidence(np.stack([scan(), balls([1])]))


def test_the_evidence_counts_and_names_the_values():
    label = np.zeros((10, 10, 10), np.uint8)
    label[:5, :4, :2] = 7
    assert label_map_evidence(label[None]) == "2 whole numbers from 0 to 7, 96 % are 0"


def write(path, array):
    write_scan(path, array.astype(np.float32 if array.dtype.kind == "f" else np.int16))


@pytest.mark.fault("H1", "label maps with unknown names among scans", "left out and reported")
def test_label_maps_with_unknown_names_are_left_out_and_reported(tmp_path, capsys):
    for number in range(5):
        write(tmp_path / f"scans/{number}/lgemri.nii.gz", scan(number))
        write(tmp_path / f"scans/{number}/lawall.nii.gz", balls([1, 2]))
    store = open_store(prepare(Prepare(scans=tmp_path / "scans", out=tmp_path / "store")))
    assert [case.id for case in store.cases] == [f"{number}_lgemri" for number in range(5)]
    said = " ".join(capsys.readouterr().err.split())
    assert "look like label maps: 0_lawall, 1_lawall, 2_lawall and 2 more" in said
    assert "in a table (image, label)" in said
    assert (tmp_path / "store/rejected.csv").read_text().count("looks like a label map") == 5


@pytest.mark.fault("H1", "label maps in a CT folder", "the window is that of the scans")
def test_a_window_is_not_fitted_to_label_maps(tmp_path):
    """The half per cent at the ends of the Hounsfield scale would be 0 and 1 instead."""
    windows = []
    for names in (("lgemri",), ("lgemri", "lawall")):
        root = tmp_path / "_".join(names)
        for number in range(3):
            ct = np.where(scan(number) > 0, scan(number) - 100, -1000)
            write(root / f"{number}/lgemri.nii.gz", ct)
            if len(names) > 1:
                write(root / f"{number}/lawall.nii.gz", balls([1, 2]))
        out = prepare(Prepare(scans=root, out=tmp_path / f"store_{root.name}"))
        windows.append(open_store(out).recipe.intensity)
    assert windows[0] == windows[1]
    assert windows[0][0].kind == "ct"


def test_what_a_person_lists_as_a_scan_is_one(tmp_path):
    write(tmp_path / "a.nii.gz", balls([1, 2]))
    write(tmp_path / "b.nii.gz", scan())
    (tmp_path / "scans.txt").write_text("a.nii.gz\nb.nii.gz\n")
    (tmp_path / "scans.csv").write_text("image\na.nii.gz\nb.nii.gz\n")
    for root in (tmp_path / "scans.txt", tmp_path / "scans.csv", tmp_path / "a.nii.gz"):
        case = sources.find_dataset(root).cases[0]
        assert "looks like a label map" in read_case(case, 1).notes[-1]
    case = sources.find_dataset(tmp_path, "folder").cases[0]
    with pytest.raises(DataError, match="looks like a label map"):
        read_case(case, 1)


@needs_scans
def test_real_labels_are_recognised_and_real_scans_are_not():
    labels = [SHARED / "ct_abdomen/organs_3mm.nii.gz"]
    for name in ("Task04_Hippocampus", "Dataset051_Sarcoma", "oasis_subcortical", "brats_cases"):
        cases = sources.find_dataset(SHARED / name).cases[:3]
        labels += [case.label for case in cases]
        for case in cases:
            for image in case.images:
                assert label_map_evidence(images.read_image(image).data) == ""
    for case in sources.find_dataset(SHARED / "idrid_fundus").cases[::40]:
        assert label_map_evidence(images.read_image(case.images[0]).data) == ""
    for label in labels:
        assert label_map_evidence(images.read_grid(label).data)
