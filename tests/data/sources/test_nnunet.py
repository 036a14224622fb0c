"""nnU-Net's raw folders: complete channels, matching labels, both generations of dataset.json."""

import json

import pytest
from PIL import Image

from selfvox.data import sources
from selfvox.errors import DataError

SETTINGS = {
    "channel_names": {"0": "T1", "1": "CT"},
    "labels": {"background": 0, "tumour": 1},
    "file_ending": ".nii.gz",
}


def write_dataset(root, *files, content=SETTINGS):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if content is not None:
        (root / "dataset.json").write_text(json.dumps(content))
    return root


def refusal(root):
    with pytest.raises(DataError) as caught:
        sources.find_dataset(root)
    assert str(caught.value).isprintable()
    return str(caught.value)


TWO = (
    "imagesTr/b_10_0000.nii.gz",
    "imagesTr/b_10_0001.nii.gz",
    "imagesTr/b_9_0000.nii.gz",
    "imagesTr/b_9_0001.nii.gz",
)


def test_channels_are_joined_in_order_and_labels_found(tmp_path):
    root = write_dataset(
        tmp_path / "Dataset001_X", *TWO, "labelsTr/b_9.nii.gz", "labelsTr/b_10.nii.gz"
    )
    write_dataset(root, "imagesTs/c_0001.nii.gz", "imagesTs/c_0000.nii.gz")
    dataset = sources.find_dataset(root)
    assert [case.id for case in dataset.cases] == ["b_9", "b_10", "c"]
    assert [path.name for path in dataset.cases[1].images] == [
        "b_10_0000.nii.gz",
        "b_10_0001.nii.gz",
    ]
    assert [case.label.name if case.label else None for case in dataset.cases] == [
        "b_9.nii.gz",
        "b_10.nii.gz",
        None,
    ]
    assert (dataset.channel_names, dataset.classes) == (
        ("T1", "CT"),
        {0: "background", 1: "tumour"},
    )
    assert dataset.notes == ("1 of 3 cases have no label",)


@pytest.mark.fault("C9", "an nnU-Net case without a channel", "refused with case and channel")
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_missing_channel_names_the_case_and_the_channel(tmp_path, missing):
    root = write_dataset(tmp_path, *(name for place, name in enumerate(TWO) if place != missing))
    (tmp_path / "imagesTr/z_0000.nii.gz").touch()
    (tmp_path / "imagesTr/z_0001.nii.gz").touch()
    message = refusal(root)
    assert f"case {TWO[missing][9:-12]} has no channel {TWO[missing][-12:-7]} of 2" in message


def test_a_missing_channel_is_seen_without_a_dataset_json_too(tmp_path):
    assert "case b_9 has no channel _0001 of 2" in refusal(
        write_dataset(tmp_path, *TWO[:3], content=None)
    )
    assert sources.find_dataset(write_dataset(tmp_path, TWO[3], content=None)).channel_names == (
        "channel 0",
        "channel 1",
    )


def test_a_channel_too_many_is_refused(tmp_path):
    root = write_dataset(tmp_path, *TWO, "imagesTr/b_9_0002.nii.gz")
    assert "case b_9 has a channel _0002, but 2 are declared" in refusal(root)


def test_what_matches_no_case_is_noted(tmp_path):
    dataset = sources.find_dataset(
        write_dataset(
            tmp_path, *TWO, "imagesTr/readme.txt", "imagesTr/.x_0000.nii.gz", "labelsTr/q.nii.gz"
        )
    )
    assert len(dataset.cases) == 2
    assert (
        "imagesTr: 2 files left out, not named like CASE_0000.nii.gz: .x_0000.nii.gz, readme.txt"
        in dataset.notes
    )
    assert "labelsTr: 1 file left out, which no case matches: q.nii.gz" in dataset.notes


def test_one_case_in_training_and_test_keeps_two_ids_and_one_subject(tmp_path):
    root = write_dataset(
        tmp_path,
        "imagesTr/a_0000.nii.gz",
        "imagesTs/a_0000.nii.gz",
        "labelsTs/a.nii.gz",
        content=None,
    )
    dataset = sources.find_dataset(root)
    assert [(case.id, case.subject, case.label is None) for case in dataset.cases] == [
        ("imagesTr_a", "a", True),
        ("imagesTs_a", "a", False),
    ]


def test_the_first_generation_names_its_channels_modality(tmp_path):
    content = {
        "modality": {"0": "CT"},
        "labels": {"background": 0},
        "training": [{"image": "./imagesTr/a.nii.gz"}],
    }
    dataset = sources.find_dataset(
        write_dataset(tmp_path, "imagesTr/a_0000.nii.gz", content=content)
    )
    assert (dataset.source, dataset.channel_names) == ("nnunet", ("CT",))


def test_a_colour_picture_holds_three_channels_in_one_file(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "imagesTr/a_0000.png")
    assert sources.find_dataset(tmp_path).channel_names == ("red", "green", "blue")
    names = {"0": "R", "1": "G", "2": "B"}
    dataset = sources.find_dataset(
        write_dataset(tmp_path, content={"channel_names": names, "file_ending": ".png"})
    )
    assert (dataset.channel_names, len(dataset.cases[0].images)) == (("R", "G", "B"), 1)


def test_of_a_folder_of_data_sets_the_only_one_is_taken_and_several_are_refused(tmp_path):
    write_dataset(tmp_path / "Dataset001_X", *TWO)
    assert sources.find_dataset(tmp_path).root == tmp_path / "Dataset001_X"
    write_dataset(tmp_path / "Dataset002_Y", *TWO)
    assert "several data sets (Dataset001_X, Dataset002_Y); name one" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"channel_names": {"0": "T1", "2": "CT"}}, "from 0"),
        ({"channel_names": ["T1", "CT"]}, "from 0"),
        ({"channel_names": {}}, "from 0"),
        ({"file_ending": ".xyz"}, "cannot be read"),
        ({"file_ending": 3}, "cannot be read"),
        ({"file_ending": "/../a.nii.gz"}, "cannot be read"),
        ({"labels": {"background": 0, "a": 0}}, "same value"),
        ({"labels": {"background": 0, "a": "1"}}, "'labels'"),
        ({"labels": {"background": 0, "a": True}}, "'labels'"),
        ({"labels": {"background": 0, "a": -1}}, "'labels'"),
        ({"labels": {}}, "'labels'"),
        ({"labels": [0, 1]}, "'labels'"),
        ({"file_ending": ".nrrd"}, "no case found"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path, changed, reason):
    assert reason in refusal(write_dataset(tmp_path, *TWO, content=SETTINGS | changed))


def test_lists_of_values_are_regions_in_their_order(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    dataset = sources.find_dataset(
        write_dataset(tmp_path, *TWO, content=SETTINGS | {"labels": labels})
    )
    assert dataset.classes == {0: "background", 1: "class 1", 2: "class 2", 3: "class 3"}
    assert dataset.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert list(dataset.regions) == ["whole", "core", "enhancing"]
    with pytest.raises(DataError, match="must give each region its values"):
        sources.find_dataset(
            write_dataset(tmp_path, *TWO, content=SETTINGS | {"labels": {"whole": [1, "2"]}})
        )


def test_ignored_voxels_are_pointed_out(tmp_path):
    dataset = sources.find_dataset(
        write_dataset(tmp_path, *TWO, content=SETTINGS | {"labels": {"background": 0, "ignore": 1}})
    )
    assert any("'ignore' is treated like any other class" in note for note in dataset.notes)


@pytest.mark.parametrize("ignored", [4, [4]])
def test_ignored_voxels_are_no_region_but_a_class_that_labels_may_hold(tmp_path, ignored):
    labels = {
        "background": 0,
        "whole": [1, 2, 3],
        "core": [2, 3],
        "enhancing": 3,
        "ignore": ignored,
    }
    dataset = sources.find_dataset(
        write_dataset(tmp_path, *TWO, content=SETTINGS | {"labels": labels})
    )
    assert dataset.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert dataset.classes == {
        0: "background",
        1: "class 1",
        2: "class 2",
        3: "class 3",
        4: "ignore",
    }
    assert any("'ignore' is treated like any other class" in note for note in dataset.notes)


def test_two_files_for_one_channel_or_label_are_refused(tmp_path):
    root = write_dataset(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0000.nrrd", content=None)
    assert "are one channel of one case" in refusal(root)
    (root / "imagesTr/a_0000.nrrd").unlink()
    assert "are labels of one case" in refusal(
        write_dataset(root, "labelsTr/a.nii", "labelsTr/a.nii.gz", content=None)
    )


def test_labels_may_be_called_as_the_first_channel_is(tmp_path):
    """As those of Learn2Reg."""
    root = write_dataset(tmp_path, *TWO, "labelsTr/b_9_0000.nii.gz", "labelsTr/b_10_0000.nii.gz")
    labels = [case.label.name for case in sources.find_dataset(root).cases]
    assert labels == ["b_9_0000.nii.gz", "b_10_0000.nii.gz"]


@pytest.mark.fault("H7", "imagesTs of nnU-Net", "read as channels")
@pytest.mark.parametrize(
    ("files", "cases"),
    [
        (["b_0000", "c_0000"], {"b": 1, "c": 1}),
        (["b_0000"], {"b": 1}),
        (["b_0000", "b_0001", "c_0000", "c_0001"], {"b": 2, "c": 2}),
        # numbers of pictures, not of channels
        (["img_0000", "img_0001", "img_0002"], None),
        (["b_0001", "c_0001"], None),
        (["b_0000", "c_0000", "c_0001"], None),
        (["b_0000", "scan"], None),
    ],
)
def test_a_folder_of_channels_is_recognised_by_itself(tmp_path, files, cases):
    """Such as `imagesTs`, which people name to `predict`: predictions are called as labels are."""
    write_dataset(tmp_path, *[f"{name}.nii.gz" for name in files], content=None)
    dataset = sources.find_dataset(tmp_path)
    if cases is None:
        assert dataset.source == "folder"
        assert len(dataset.cases) == len(files)
    else:
        assert dataset.source == "nnunet"
        assert {case.id: len(case.images) for case in dataset.cases} == cases


def test_one_case_of_two_channels_is_read_where_the_layout_is_named(tmp_path):
    write_dataset(tmp_path, "b_0000.nii.gz", "b_0001.nii.gz", content=None)
    (case,) = sources.find_dataset(tmp_path, "nnunet").cases
    assert [path.name for path in case.images] == ["b_0000.nii.gz", "b_0001.nii.gz"]
