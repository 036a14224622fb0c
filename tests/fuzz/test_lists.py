"""Tables, lists, settings and folders with anything in them: read, or refused in one line."""

from __future__ import annotations

import functools
import itertools
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfvox.data.sources import find_dataset
from selfvox.errors import DataError, UsageError
from selfvox.settings import safe_yaml
from selfvox.settings.options import resolve, to_yaml
from selfvox.settings.verbs import Pretrain

from .test_readers import damage, damages

SCANS = ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d_seg.nii.gz", "p.png", "é.nii.gz")
HEADINGS = ("image", "label", "subject", "grade", "image_t1", "image_t2", "split", "Image", "")
CELLS = (
    *SCANS,
    "./a.nii.gz",
    "a",
    "../a.nii.gz",
    "/etc/passwd",
    "0",
    "1",
    "-1",
    "1.5",
    "nan",
    "ann",
)
TEXT = st.text(max_size=12)
TABLE = "image,label,subject,grade\na.nii.gz,d_seg.nii.gz,ann,0\nb.nii.gz,,bob,1\n"
LIST = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "organ"},
    "training": [{"image": "./a.nii.gz", "label": "./d_seg.nii.gz"}, {"image": "b.nii.gz"}],
    "test": ["c.nii.gz"],
}
# of BIDS and of its neighbours
PARTS = ("sub-01", "sub-02", "ses-1", "anat", "func", "derivatives", "code", "sub-", "x y", "-")
STEMS = (
    "sub-01_T1w",
    "sub-02_ses-1_T1w",
    "sub-01_part-phase_T1w",
    "sub-01_dseg",
    "T1w",
    "sub-01",
    "",
)
ENDINGS = (".nii.gz", ".nii", ".json", ".png", "", ".NII.GZ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with files of scans, which no list reads."""
    root = tmp_path_factory.mktemp("lists")
    for name in SCANS:
        (root / name).touch()
    return root


def outcome(read, root):
    """`read` or `refused`; what is read is a sound data set of files in its folder."""
    try:
        dataset = read()
    except (DataError, UsageError) as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.isprintable()
        return "refused"
    ids = [case.id for case in dataset.cases]
    assert len(set(ids)) == len(ids)
    assert all(name.isprintable() and "/" not in name for name in ids)
    images = [path for case in dataset.cases for path in case.images]
    labels = {case.label for case in dataset.cases if case.label is not None}
    assert not labels & set(images)
    assert all(path.resolve().is_relative_to(root.resolve()) for path in (*images, *labels))
    return "read"


def cells(row):
    return ",".join(f'"{cell}"' if "," in cell else cell for cell in row)


ROWS = st.lists(st.lists(st.one_of(st.sampled_from(CELLS), TEXT), max_size=4), max_size=4)


@pytest.mark.fault("X19", "random tables of scans", "read or refused in one line")
@given(headings=st.lists(st.one_of(st.sampled_from(HEADINGS), TEXT), max_size=4), rows=ROWS)
def test_any_table_is_read_or_refused(folder, count, headings, rows):
    text = "\n".join(map(cells, [headings, *rows]))
    file = folder / "any.csv"
    # lone halves of a pair are no text
    file.write_text(text, encoding="utf-8", errors="replace")
    # an absolute path is the word of the person who wrote the table, so it may lead anywhere
    if "/etc/passwd" not in text:
        count("table", outcome(lambda: find_dataset(file), folder))


@pytest.mark.fault("X19", "random damage to a table", "read or refused in one line")
@given(changes=damages())
def test_a_damaged_table_is_read_or_refused(folder, count, changes):
    file = folder / "damaged.csv"
    file.write_bytes(damage(TABLE.encode(), changes))
    count("damaged table", outcome(lambda: find_dataset(file), folder))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from(CELLS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(TEXT | st.sampled_from(CELLS), inner, max_size=3),
    ),
    max_leaves=6,
)


@pytest.mark.fault("X19", "random values in dataset.json", "read or refused in one line")
@given(key=st.sampled_from([*LIST, "regions_class_order", "file_ending"]), value=VALUES)
def test_any_value_in_a_list_is_read_or_refused(folder, count, key, value):
    root = folder / "decathlon"
    root.mkdir(exist_ok=True)
    for name in SCANS:
        (root / name).touch()
    (root / "dataset.json").write_text(json.dumps({**LIST, key: value}), encoding="utf-8")
    for source in ("auto", "decathlon", "nnunet"):
        result = outcome(functools.partial(find_dataset, root, source), root)
        count(f"dataset.json {source}", result)


@pytest.mark.fault("X19", "random damage to dataset.json", "read or refused in one line")
@given(changes=damages())
def test_a_damaged_list_is_read_or_refused(folder, count, changes):
    root = folder / "damaged"
    root.mkdir(exist_ok=True)
    for name in SCANS:
        (root / name).touch()
    (root / "dataset.json").write_bytes(damage(json.dumps(LIST).encode(), changes))
    count("damaged dataset.json", outcome(lambda: find_dataset(root), root))


SETTINGS = to_yaml(resolve(Pretrain, {"scans": "scans", "out": "runs/pretrained"}))


@pytest.mark.fault("X19", "random damage to a settings file", "read or refused in one line")
@given(changes=damages())
def test_a_damaged_settings_file_is_read_or_refused(folder, count, changes):
    file = folder / "settings.yaml"
    # the help of the settings is a comment, in which nothing can break
    plain = "\n".join(line for line in SETTINGS.splitlines() if not line.startswith("#"))
    file.write_bytes(damage(plain.encode(), changes))
    message = ""
    try:
        resolve(Pretrain, safe_yaml.read_yaml(file))
    except UsageError as error:
        message = str(error)
    assert "\n" not in message
    count("settings", "refused" if message else "read")


# as BIDS wants them: by chance, none of the others is
BIDS_PATHS = [
    (["sub-01", "anat"], "sub-01_T1w", ".nii.gz"),
    (["sub-01", "anat"], "sub-01_dseg", ".nii.gz"),
    (["sub-02", "ses-1", "anat"], "sub-02_ses-1_T1w", ".nii.gz"),
]
PATHS = st.lists(
    st.sampled_from(BIDS_PATHS)
    | st.tuples(
        st.lists(st.sampled_from(PARTS), max_size=4),
        st.sampled_from(STEMS) | st.text("ab-_.1é\n", max_size=6),
        st.sampled_from(ENDINGS),
    ),
    max_size=6,
)
NUMBERED = itertools.count()


@pytest.mark.fault(
    "X19", "random trees of folders, near those of BIDS", "read or refused in one line"
)
@given(paths=PATHS, source=st.sampled_from(["auto", "bids", "bids:T1w", "bids:T1w,dseg", "folder"]))
def test_any_tree_is_read_or_refused(folder, count, paths, source):
    root = folder / f"tree{next(NUMBERED)}"
    root.mkdir()
    for parts, stem, ending in paths:
        file = root.joinpath(*parts) / f"{stem}{ending}"
        # a file may be where another path has a folder
        if stem.strip(".") and not any(parent.is_file() for parent in file.parents):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.touch()
    count(source, outcome(lambda: find_dataset(root, source), root))
    shutil.rmtree(root)
