"""Pairs of scans and labels: one rule, whatever people call their files."""

import random
import unicodedata
from pathlib import PurePath

import pytest

from selfvox.data import pairing


def paths(*names):
    return [PurePath(name) for name in names]


def pairs(*names):
    found = pairing.pair_files(paths(*names))
    return {str(scan): str(label) for scan, label in found.labels.items()}


@pytest.mark.fault("H1 H9", "labels named in many ways", "paired with the scan")
@pytest.mark.parametrize(
    ("scan", "label"),
    [
        ("case_00001/imaging.nii.gz", "case_00001/segmentation.nii.gz"),
        ("volume-7.nii", "segmentation-7.nii"),
        ("p1/p1_frame01.nii.gz", "p1/p1_frame01_gt.nii.gz"),
        ("CT_1.nrrd", "CT_1.seg.nrrd"),
        ("liver-orig001.mhd", "liver-seg001.mhd"),
        ("images/1.nii.gz", "groundtruth/1.nii.gz"),
        ("Original/1.tif", "Ground Truth/1.tif"),
        ("train/1/image.nii.gz", "train/1/label.nii.gz"),
        ("img/img0001.nii.gz", "label/label0001.nii.gz"),
        ("images/a_0000.nii.gz", "labels/a.nii.gz"),
        ("Pat_1/Pat_1.nii.gz", "Pat_1/GT.nii.gz"),
        ("7/ct.nii.gz", "7/segmentations/liver.nii.gz"),
        ("ann.nii.gz", "ann_liver_mask.nii.gz"),
        ("ann_contrast.nii.gz", "ann_seg.nii.gz"),
        ("raw/ann.nii.gz", "seg-lungs/ann.nii.gz"),
        ("1 (2).png", "1 (2)_mask_1.png"),
        ("masks_2024/7/image.png", "masks_2024/7/mask.png"),
        ("p1/T1.nii.gz", "p1/lesion.nii.gz"),
        ("ct_7.nii.gz", "tumor_7.nii.gz"),
        ("IMD001/IMD001_Dermoscopic_Image/IMD001.bmp", "IMD001/IMD001_lesion/IMD001_lesion.bmp"),
        ("input/1.png", "target/1.png"),
        ("lesion_1.png", "lesion_1_mask.png"),
        ("Bilder/1.png", "Masken/1.png"),
        ("p1/p1_t2.nii.gz", "p1/p1_tumorseg.nii.gz"),
        ("x/images/train/a.png", "x/labels/train/a.png"),
    ],
)
def test_a_label_finds_its_scan(scan, label):
    assert pairs(scan, label) == {scan: label}


@pytest.mark.parametrize(
    ("scan", "label"),
    [
        ("siteA/images/1.nii.gz", "siteB/labels/1.nii.gz"),
        ("imagesTs/1.nii.gz", "labelsTr/1.nii.gz"),
        ("images/test/1.nii.gz", "labels/training/1.nii.gz"),
        ("patient_1.nii.gz", "patient_1_2_seg.nii.gz"),
        ("patient_1.nii.gz", "patient_11_seg.nii.gz"),
        ("a.nii.gz", "elsewhere/a_seg.nii.gz"),
        ("7/ct.nii.gz", "8/segmentation.nii.gz"),
    ],
)
def test_a_label_of_another_scan_finds_none(scan, label):
    found = pairing.pair_files(paths(scan, label))
    assert found.labels == {}
    assert found.unmatched == (PurePath(label),)


@pytest.mark.parametrize(
    "names",
    [
        ("tumor/1.png", "normal/1.png"),
        ("no_tumor/1.png", "glioma_tumor/1.png", "healthy/1.png"),
        ("tumor_1/1.png", "normal_1/1.png"),
        ("tumor/tumor_1.png", "normal/normal_1.png"),
        ("tumor_1.png", "no_tumor_1.png", "glioma_1.png"),
        ("lesion_1.png", "lesion_2.png"),
        ("target_1.png",),
    ],
)
def test_classes_that_are_called_after_a_disease_are_scans(names):
    scans, labels = pairing.tell_labels(paths(*names))
    assert (scans, labels) == (paths(*names), [])


def test_the_strictest_way_wins_so_that_no_scan_gets_the_label_of_another():
    names = ("1.png", "train_1.png", "1_mask.png", "train_1_mask.png", "image_1.png")
    assert pairs(*names) == {"1.png": "1_mask.png", "train_1.png": "train_1_mask.png"}


@pytest.mark.fault("H13", "scan in NFC, label in NFD", "paired")
def test_a_letter_in_two_pieces_is_the_letter():
    """macOS writes u and its dots apart; archives carry that to other systems."""
    composed = unicodedata.normalize("NFC", "images/Müller.nii.gz")
    apart = unicodedata.normalize("NFD", "labels/Müller.nii.gz")
    assert composed.replace("images", "labels") != apart
    assert pairs(composed, apart) == {composed: apart}


def test_pairs_do_not_depend_on_the_order_of_the_files():
    names = [
        f"{site}/{number}/{kind}.nii.gz"
        for site in ("Utrecht", "Oslo")
        for number in range(20)
        for kind in ("t1", "segmentation")
    ]
    names += [f"scans/p{number}.nii.gz" for number in range(20)]
    names += [f"masks/p{number}_mask.nii.gz" for number in range(0, 20, 3)]
    expected = {
        name: name.replace("t1", "segmentation") for name in names if name.endswith("t1.nii.gz")
    } | {f"scans/p{number}.nii.gz": f"masks/p{number}_mask.nii.gz" for number in range(0, 20, 3)}
    for seed in range(3):
        random.Random(seed).shuffle(names)
        assert pairs(*names) == expected


def test_a_scan_with_several_labels_and_a_label_with_several_scans_are_left_open():
    found = pairing.pair_files(
        paths("1/ct.nii.gz", "1/liver_seg.nii.gz", "1/spleen_seg.nii.gz")
        + paths("2/ct.nii.gz", "2/pet.nii.gz", "2/seg.nii.gz")
    )
    assert found.labels == {}
    assert found.several_labels == {
        PurePath("1/ct.nii.gz"): tuple(paths("1/liver_seg.nii.gz", "1/spleen_seg.nii.gz"))
    }
    assert found.several_scans == {
        PurePath("2/seg.nii.gz"): tuple(paths("2/ct.nii.gz", "2/pet.nii.gz"))
    }


def test_the_word_of_a_question_means_one_candidate_alone():
    candidates = paths("1st_manual/21_manual1.gif", "mask/21_training_mask.gif", "21_seg.nii.gz")
    words = [pairing.shortest_word(path, candidates) for path in candidates]
    assert words == ["1st_manual", "mask", "seg"]
    quoted = paths("1. Red spots/x_MA.tif", "2. Disc/x_OD.tif")
    assert [pairing.shortest_word(path, quoted) for path in quoted] == ["MA", "OD"]
    for path, word in zip(candidates, words, strict=True):
        assert [other for other in candidates if pairing.answers_to(other, word)] == [path]
    twice = paths("labels/a.nii.gz", "labels/a.nrrd")
    words = [pairing.shortest_word(path, twice) for path in twice]
    assert words == ["labels/a.nii.gz", "labels/a.nrrd"]
    for path, word in zip(twice, words, strict=True):
        assert [other for other in twice if pairing.answers_to(other, word)] == [path]
