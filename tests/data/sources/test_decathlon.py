"""A decathlon's dataset.json: read as meant, and never trusted."""

import json

import pytest

from selfvox.data import sources
from selfvox.errors import DataError

LABELS = {"0": "background", "1": "tumour"}


def write_dataset(root, **content):
    """Write dataset.json and touch every file it lists that stays inside."""
    content = {"modality": {"0": "MRI"}, "labels": LABELS} | content
    root.mkdir(exist_ok=True)
    for entry in [
        entry for name in ("training", "validation", "test") for entry in content.get(name, [])
    ]:
        for path in entry.values() if isinstance(entry, dict) else [entry]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def refusal(root):
    with pytest.raises(DataError) as caught:
        sources.find_dataset(root, "decathlon")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_training_and_test_lists_become_cases_with_and_without_labels(tmp_path):
    training = [
        {"image": f"./imagesTr/a_{n}.nii.gz", "label": f"./labelsTr/a_{n}.nii.gz"} for n in (10, 9)
    ]
    dataset = sources.find_dataset(
        write_dataset(tmp_path, training=training, test=["./imagesTs/a_11.nii.gz"])
    )
    assert [case.id for case in dataset.cases] == ["a_9", "a_10", "a_11"]
    assert [
        case.label and case.label.relative_to(tmp_path).as_posix() for case in dataset.cases
    ] == [
        "labelsTr/a_9.nii.gz",
        "labelsTr/a_10.nii.gz",
        None,
    ]
    assert dataset.classes == {0: "background", 1: "tumour"}
    assert dataset.notes == ("1 of 3 cases have no label",)
    assert sources.find_dataset(tmp_path / "dataset.json") == dataset


def test_several_modalities_are_channels_of_one_file_in_their_order(tmp_path):
    names = {str(number): f"channel {number}" for number in reversed(range(11))}
    dataset = sources.find_dataset(
        write_dataset(tmp_path, modality=names, training=[{"image": "a.nii.gz"}])
    )
    assert dataset.channel_names == tuple(f"channel {number}" for number in range(11))
    assert len(dataset.cases[0].images) == 1


def test_one_stem_in_two_lists_keeps_two_ids_and_one_subject(tmp_path):
    dataset = sources.find_dataset(
        write_dataset(tmp_path, training=["imagesTr/a.nii.gz"], test=["imagesTs/a.nii.gz"])
    )
    assert [(case.id, case.subject) for case in dataset.cases] == [
        ("imagesTr_a", "a"),
        ("imagesTs_a", "a"),
    ]


@pytest.mark.fault("X2 C15", "`../../etc/passwd` in dataset.json", "refused")
@pytest.mark.parametrize(
    "path", ["../../../etc/passwd", "/etc/passwd", "a/../../outside.nii.gz", "../outside.nii.gz"]
)
@pytest.mark.parametrize("form", ["image", "label", "text"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path, path, form):
    root = write_dataset(tmp_path / "root", training=["a.nii.gz"])
    (tmp_path / "outside.nii.gz").touch()
    entry = path if form == "text" else {"image": "a.nii.gz"} | {form: path}
    (root / "dataset.json").write_text(json.dumps({"training": [entry]}))
    assert "leads out of" in refusal(root)


def test_an_absolute_path_inside_is_read_from_any_working_folder(tmp_path, monkeypatch):
    root = write_dataset(
        tmp_path / "root", training=[str(tmp_path / "root" / "imagesTr" / "a.nii.gz")]
    )
    monkeypatch.chdir(tmp_path)
    for named in (root, root.relative_to(tmp_path)):
        assert [
            (case.id, case.images) for case in sources.find_dataset(named, "decathlon").cases
        ] == [("a", (named / "imagesTr" / "a.nii.gz",))]


@pytest.mark.fault("X2", "a link that leaves the folder", "refused")
def test_a_link_that_leaves_the_root_is_refused_and_one_that_stays_is_not(tmp_path):
    root = write_dataset(tmp_path / "root", training=["real/a.nii.gz"])
    (tmp_path / "outside.nii.gz").touch()
    (root / "dataset.json").write_text('{"training": ["link/a.nii.gz"]}')
    (root / "link").symlink_to(root / "real")
    assert len(sources.find_dataset(root).cases) == 1
    (root / "link").unlink()
    (root / "link").symlink_to(tmp_path)
    (root / "dataset.json").write_text('{"training": ["link/outside.nii.gz"]}')
    assert "leads out of" in refusal(root)


@pytest.mark.parametrize(
    "path",
    [
        "",
        " ",
        "a\0.nii.gz",
        "C:\\a.nii.gz",
        "\ud800.nii.gz",
        "x" * 5000 + ".nii.gz",
        "a/" * 3000 + "b.nii.gz",
    ],
)
def test_what_is_no_path_is_refused(tmp_path, path):
    root = write_dataset(tmp_path / "root", training=["a.nii.gz"])
    (root / "dataset.json").write_text(json.dumps({"training": [path]}))
    assert "dataset.json names" in refusal(root)


def test_missing_files_are_named(tmp_path):
    root = write_dataset(
        tmp_path, training=[{"image": f"{n}.nii.gz", "label": f"{n}_l.nii.gz"} for n in range(9)]
    )
    for number in range(2, 7):
        (root / f"{number}.nii.gz").unlink()
    message = refusal(root)
    assert "2.nii.gz, 3.nii.gz, 4.nii.gz and 2 more" in message
    (root / "dataset.json").write_text(
        '{"training": [{"image": "0.nii.gz", "label": "\\u001b[31m.nii.gz"}]}'
    )
    assert "%1B[31m.nii.gz" in refusal(root)


@pytest.mark.fault("C9 C11", "lists, keys and types that do not fit", "refused in one line")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"training": []}, "lists no case"),
        ({}, "lists no case"),
        ({"training": {"image": "a.nii.gz"}}, "not a list"),
        ({"training": [3]}, r"training[0] is not a path"),
        ({"training": ["a.nii.gz", {"label": "a.nii.gz"}]}, "training[1] is not a path"),
        ({"training": [{"image": "a.nii.gz", "label": 1.5}]}, "training[0]"),
        ({"training": [{"image": "a.nii.gz", "label": True}]}, "training[0]"),
        ({"training": [{"image": "a.nii.gz", "label": -1}]}, "training[0]"),
        ({"training": [{"image": []}]}, "training[0]"),
        ({"training": [{"image": ["a.nii.gz", 3]}]}, "training[0]"),
        ({"training": [{"image": ["a.nii.gz"]}, {"image": ["c.nii.gz", "d.nii.gz"]}]}, "channels"),
        ({"training": ["a.nii.gz", "./a.nii.gz"]}, "more than once"),
        ({"training": ["a.nii.gz"], "test": ["b/../a.nii.gz"]}, "more than once"),
        ({"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}]}, "as label and as image"),
        ({"training": ["a.mat"]}, "not a scan that can be read"),
        ({"training": ["a.nii.gz"], "modality": {"1": "MRI"}}, "from 0"),
        ({"training": ["a.nii.gz"], "modality": ["MRI"]}, "from 0"),
        ({"training": ["a.nii.gz"], "modality": {}}, "from 0"),
        ({"training": ["a.nii.gz"], "labels": ["background"]}, "'labels'"),
        ({"training": ["a.nii.gz"], "labels": {"one": "tumour"}}, "'labels'"),
        ({"training": ["a.nii.gz"], "labels": {"-1": "tumour"}}, "'labels'"),
        ({"training": ["a.nii.gz"], "labels": {"0": 0}}, "'labels'"),
        ([], "not an object"),
        ("training", "not an object"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path, content, reason):
    for name in ("a.nii.gz", "a.mat"):
        (tmp_path / name).touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert reason in refusal(tmp_path)


@pytest.mark.fault("C11", "a dataset.json that is not strict JSON", "refused with the file")
@pytest.mark.parametrize(
    "text",
    [
        '{"training": ["a"], "training": ["b"]}',
        '{"x": NaN}',
        "[" * 100_000,
        '{"training": ["a",]}',
        "",
    ],
)
def test_what_is_not_strict_json_is_refused_by_the_file(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    assert "dataset.json" in refusal(tmp_path)


@pytest.mark.fault("H11", "MONAI's lists: channels as a list, `testing`", "channels and test scans")
def test_the_lists_of_monai_have_a_file_per_channel_and_more_keys(tmp_path):
    """As its BraTS and Auto3DSeg tutorials write them."""
    names = [f"{case}/{case}_{kind}.nii.gz" for case in "ab" for kind in ("flair", "t1", "seg")]
    for name in (*names, "c/c_flair.nii.gz", "c/c_t1.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    content = {
        "training": [
            {"fold": number, "image": names[3 * number :][:2], "label": names[3 * number + 2]}
            for number in (0, 1)
        ],
        "testing": [{"image": ["c/c_flair.nii.gz", "c/c_t1.nii.gz"]}],
        "held_out": [{"image": ["a/a_t1.nii.gz"]}] * 3,
        "numTraining": 2,
    }
    listed = tmp_path / "brats_folds.json"
    listed.write_text(json.dumps(content))
    dataset = sources.find_dataset(listed)
    assert dataset.channel_names == ("channel 0", "channel 1")
    assert [[path.name for path in case.images] for case in dataset.cases] == [
        ["a_flair.nii.gz", "a_t1.nii.gz"],
        ["b_flair.nii.gz", "b_t1.nii.gz"],
        ["c_flair.nii.gz", "c_t1.nii.gz"],
    ]
    assert [case.label and case.label.name for case in dataset.cases] == [
        "a_seg.nii.gz",
        "b_seg.nii.gz",
        None,
    ]
    assert any("lists of cases not read: 'held_out' (3)" in note for note in dataset.notes)
    listed.write_text(json.dumps(content | {"modality": {"0": "FLAIR", "1": "T1"}}))
    assert sources.find_dataset(listed).channel_names == ("FLAIR", "T1")


def test_a_label_that_is_a_number_is_the_grade_of_its_scan(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    content = {"training": [{"image": "a.nii.gz", "label": 2}, {"image": "b.nii.gz", "label": 0}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cases = sources.find_dataset(tmp_path).cases
    assert [(case.grade, case.label) for case in cases] == [(2, None), (0, None)]
