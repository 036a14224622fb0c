"""How public data sets name their files: paired right, or one question, and nothing taken wrongly.

Each layout has tiny files of three cases under the data set's own names. Its outcome is `paired`
(scans and labels are told apart, each label with its scan), `asked` (the one question that settles
it, with an answer) or `said` (what was not read is named).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from PIL import Image as Pillow

from selfvox.data import sources
from selfvox.data.formats.image import SUFFIXES_2D, suffix
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import ChoiceNeeded, Dataset
from selfvox.errors import DataError

from .test_dicom import save, series

CASES = (1, 2, 3)


@dataclass(frozen=True)
class Layout:
    """The files of one data set; `{n}` is the number of a case, formatted as it has it."""

    name: str
    pairs: Mapping[str, str]  # scan -> its label, or "" where it has none
    labels: tuple[str, ...] = ()  # further label maps
    texts: Mapping[str, str] = field(default_factory=dict)  # other files, with their contents
    question: str = ""  # in the message, where one has to be asked
    answer: str = ""  # of --source, after which `pairs` are found
    notes: str = ""  # in the notes
    unnamed: tuple[str, ...] = ()  # label maps whose names say nothing: their voxels do
    subjects: int = 3
    dicom: str = ""  # folder of a series per case

    @property
    def outcome(self) -> str:
        """What happens to it."""
        if self.question:
            return "asked"
        return "said" if self.notes or self.unnamed else "paired"


MSD = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "tumour"},
    "training": [
        {"image": f"./imagesTr/amos_{n:04d}.nii.gz", "label": f"./labelsTr/amos_{n:04d}.nii.gz"}
        for n in CASES
    ],
    "validation": [],
    "test": [],
}
LISTED = json.dumps(MSD)

VOLUMES = (
    Layout("KiTS19", {"case_{n:05d}/imaging.nii.gz": "case_{n:05d}/segmentation.nii.gz"}),
    Layout(
        "KiTS21",
        {"case_{n:05d}/imaging.nii.gz": "case_{n:05d}/aggregated_MAJ_seg.nii.gz"},
        labels=(
            "case_{n:05d}/aggregated_AND_seg.nii.gz",
            "case_{n:05d}/aggregated_OR_seg.nii.gz",
            "case_{n:05d}/segmentations/tumor_instance-1_annotation-1.nii.gz",
        ),
        question="has 4 files that may be its label .* for 2 scans more",
        answer="folder:MAJ_seg",
    ),
    Layout("LiTS", {"batch1/volume-{n}.nii": "batch1/segmentation-{n}.nii"}),
    Layout(
        "ACDC",
        {
            "training/patient{n:03d}/patient{n:03d}_frame01.nii.gz": (
                "training/patient{n:03d}/patient{n:03d}_frame01_gt.nii.gz"
            ),
            "training/patient{n:03d}/patient{n:03d}_frame12.nii.gz": (
                "training/patient{n:03d}/patient{n:03d}_frame12_gt.nii.gz"
            ),
            "training/patient{n:03d}/patient{n:03d}_4d.nii.gz": "",
        },
        texts={"training/patient{n:03d}/Info.cfg": "ED: 1"},
    ),
    Layout(
        "M&Ms-2",
        {
            "dataset/{n:03d}/{n:03d}_SA_ED.nii.gz": "dataset/{n:03d}/{n:03d}_SA_ED_gt.nii.gz",
            "dataset/{n:03d}/{n:03d}_SA_ES.nii.gz": "dataset/{n:03d}/{n:03d}_SA_ES_gt.nii.gz",
        },
    ),
    Layout(
        "MM-WHS",
        {
            "ct_train/ct_train_{n}001_image.nii.gz": "ct_train/ct_train_{n}001_label.nii.gz",
            "ct_test/ct_test_{n}009_image.nii.gz": "",
        },
        subjects=6,
    ),
    Layout(
        "CHAOS",
        {},
        dicom="Train_Sets/CT/{n}/DICOM_anon",
        labels=("Train_Sets/CT/{n}/Ground/liver_GT_000.png",),
        notes="3 pictures next to the series left out; if they are labels of slices, convert",
    ),
    Layout(
        "BTCV",
        {
            "Training/img/img{n:04d}.nii.gz": "Training/label/label{n:04d}.nii.gz",
            "Testing/img/img{n}061.nii.gz": "",
        },
        subjects=6,
    ),
    Layout(
        "AMOS22",
        {"imagesTr/amos_{n:04d}.nii.gz": "labelsTr/amos_{n:04d}.nii.gz"},
        texts={"dataset.json": LISTED},
    ),
    Layout(
        "FLARE22",
        {"images/FLARE22_Tr_{n:04d}_0000.nii.gz": "labels/FLARE22_Tr_{n:04d}.nii.gz"},
    ),
    Layout("AbdomenCT-1K", {"ImagePart1/Case_{n:05d}_0000.nii.gz": "Mask/Case_{n:05d}.nii.gz"}),
    Layout(
        "TotalSegmentator",
        {"s{n:04d}/ct.nii.gz": "s{n:04d}/segmentations/liver.nii.gz"},
        labels=tuple(
            f"s{{n:04d}}/segmentations/{organ}.nii.gz"
            for organ in ("aorta", "kidney_left", "kidney_right", "spleen")
        ),
        texts={"meta.csv": "image_id;age\ns0001;50\n"},
        question="has 5 files that may be its label",
        answer="folder:liver",
    ),
    Layout(
        "WORD",
        {
            "imagesTr/word_{n:04d}.nii.gz": "labelsTr/word_{n:04d}.nii.gz",
            "imagesVal/word_{n}007.nii.gz": "labelsVal/word_{n}007.nii.gz",
            "imagesTs/word_{n}009.nii.gz": "",
        },
        subjects=9,
    ),
    Layout(
        "ISLES22",
        {
            "sub-strokecase{n:04d}/ses-0001/dwi/sub-strokecase{n:04d}_ses-0001_dwi.nii.gz": (
                "derivatives/sub-strokecase{n:04d}/ses-0001/"
                "sub-strokecase{n:04d}_ses-0001_msk.nii.gz"
            ),
        },
        texts={
            "sub-strokecase{n:04d}/ses-0001/anat/sub-strokecase{n:04d}_ses-0001_FLAIR.nii.gz": "",
            "sub-strokecase{n:04d}/ses-0001/dwi/sub-strokecase{n:04d}_ses-0001_adc.nii.gz": "",
        },
        notes=r"label maps left out \(3 msk\).*--source bids:FLAIR,msk \(or adc, dwi in place",
        answer="bids:dwi,msk",
    ),
    Layout(
        "ATLAS-R2.0",
        {
            "R00{n}/sub-r00{n}s001/ses-1/anat/sub-r00{n}s001_ses-1_space-MNI_T1w.nii.gz": (
                "R00{n}/sub-r00{n}s001/ses-1/anat/"
                "sub-r00{n}s001_ses-1_space-MNI_label-L_desc-T1lesion_mask.nii.gz"
            ),
        },
    ),
    Layout(
        "MSD",
        {"imagesTr/amos_{n:04d}.nii.gz": "labelsTr/amos_{n:04d}.nii.gz"},
        texts={"dataset.json": LISTED, "imagesTr/._amos_0001.nii.gz": ""},
    ),
    Layout(
        "PROMISE12", {"TrainingData/Case{n:02d}.mhd": "TrainingData/Case{n:02d}_segmentation.mhd"}
    ),
    Layout(
        "LUNA16",
        {"subset{n}/1.3.6.1.4.1.{n}.mhd": "seg-lungs-LUNA16/1.3.6.1.4.1.{n}.mhd"},
        texts={"annotations.csv": "seriesuid,coordX\n1.3.6.1.4.1.1,3\n"},
    ),
    Layout(
        "LIDC-as-NIfTI",
        {
            "LIDC-IDRI-000{n}/LIDC-IDRI-000{n}_CT.nii.gz": (
                "LIDC-IDRI-000{n}/LIDC-IDRI-000{n}_nodules_mask.nii.gz"
            )
        },
    ),
    Layout(
        "OASIS-neurite",
        {"OASIS_OAS1_000{n}_MR1/aligned_norm.nii.gz": "OASIS_OAS1_000{n}_MR1/aligned_seg35.nii.gz"},
        labels=("OASIS_OAS1_000{n}_MR1/aligned_seg4.nii.gz",),
        question="has 2 files that may be its label",
        answer="folder:aligned_seg35",
    ),
    Layout(
        "OASIS-Learn2Reg",
        {"imagesTr/OASIS_{n:04d}_0000.nii.gz": "labelsTr/OASIS_{n:04d}_0000.nii.gz"},
    ),
    Layout("IXI", {"IXI-T1/IXI00{n}-Guys-0828-T1.nii.gz": ""}),
    Layout(
        "ADNI-BIDS",
        {
            f"sub-ADNI{{n:04d}}/ses-{visit}/anat/sub-ADNI{{n:04d}}_ses-{visit}_T1w.nii.gz": ""
            for visit in ("M00", "M12")
        },
    ),
    Layout(
        "ADNI-raw",
        {
            f"ADNI/002_S_000{{n}}/MPR/{date}_07_31_52.0/S13/ADNI_002_S_000{{n}}_MR_{date}.nii": ""
            for date in ("2006-05-02", "2007-06-03")
        },
    ),
    Layout("Slicer", {"CT_{n}.nrrd": "CT_{n}.seg.nrrd"}),
    Layout(
        "PI-CAI",
        {
            "images/1000{n}/1000{n}_100000{n}_t2w.mha": (
                "labels/human_expert/resampled/1000{n}_100000{n}.nii.gz"
            )
        },
        texts={f"images/1000{{n}}/1000{{n}}_100000{{n}}_{kind}.mha": "" for kind in ("adc", "hbv")},
        question="may be the label of 2 scans",
        answer="folder:t2w",
    ),
    Layout(
        "SegTHOR",
        {"train/Patient_{n:02d}/Patient_{n:02d}.nii.gz": "train/Patient_{n:02d}/GT.nii.gz"},
    ),
    Layout(
        "VerSe",
        {
            "rawdata/sub-verse00{n}/sub-verse00{n}_ct.nii.gz": (
                "derivatives/sub-verse00{n}/sub-verse00{n}_seg-vert_msk.nii.gz"
            )
        },
        texts={"derivatives/sub-verse00{n}/sub-verse00{n}_seg-subreg_ctd.json": "[]"},
    ),
    Layout(
        "autoPET",
        {"PETCT_0{n}/03-23-2003-NA-PET/SUV.nii.gz": "PETCT_0{n}/03-23-2003-NA-PET/SEG.nii.gz"},
        texts={
            f"PETCT_0{{n}}/03-23-2003-NA-PET/{kind}.nii.gz": "" for kind in ("CT", "CTres", "PET")
        },
        question="may be the label of 3 scans",
        answer="folder:SUV",
    ),
    Layout("CT-ORG", {"volume-{n}.nii.gz": "labels-{n}.nii.gz"}),
    Layout("SLIVER07", {"liver-orig{n:03d}.mhd": "liver-seg{n:03d}.mhd"}),
    Layout(
        "HECKTOR",
        {"imagesTr/CHUM-00{n}__CT.nii.gz": "labelsTr/CHUM-00{n}.nii.gz"},
        texts={"imagesTr/CHUM-00{n}__PT.nii.gz": ""},
        question="may be the label of 2 scans",
        answer="folder:CT",
    ),
    Layout(
        "EMIDEC",
        {"Case_N00{n}/Images/Case_N00{n}.nii.gz": "Case_N00{n}/Contours/Case_N00{n}.nii.gz"},
        texts={"Case_N00{n}/Case_N00{n}.txt": "x"},
    ),
    Layout("ImageCAS", {"{n}.img.nii.gz": "{n}.label.nii.gz"}),
    Layout(
        "HaN-Seg",
        {"case_0{n}/case_0{n}_IMG_CT.nrrd": "case_0{n}/case_0{n}_OAR_Bone_Mandible.seg.nrrd"},
        labels=("case_0{n}/case_0{n}_OAR_Parotid_L.seg.nrrd",),
        texts={"case_0{n}/case_0{n}_IMG_MR_T1.nrrd": ""},
        question="may be the label of 2 scans",
        answer="folder:CT,Mandible.seg",
    ),
    Layout(
        "LA-2018",
        {"Training Set/0RZDK21{n}/lgemri.nrrd": ""},
        unnamed=("Training Set/0RZDK21{n}/laendo.nrrd", "Training Set/0RZDK21{n}/lawall.nrrd"),
    ),
    Layout("WMH-2017", {"Utrecht/{n}/pre/FLAIR.nii.gz": ""}, unnamed=("Utrecht/{n}/wmh.nii.gz",)),
)

PICTURES = (
    Layout(
        "DRIVE",
        {"training/images/2{n}_training.tif": "training/1st_manual/2{n}_manual1.gif"},
        labels=("training/mask/2{n}_training_mask.gif",),
        question="has 2 files that may be its label",
        answer="folder:1st_manual",
    ),
    Layout(
        "STARE",
        {"stare-images/im000{n}.ppm": "labels-ah/im000{n}.ah.ppm"},
        labels=("labels-vk/im000{n}.vk.ppm",),
        question="has 2 files that may be its label",
        answer="folder:labels-ah",
    ),
    Layout(
        "CHASE-DB1",
        {f"Image_0{{n}}{eye}.jpg": f"Image_0{{n}}{eye}_1stHO.png" for eye in "LR"},
        labels=tuple(f"Image_0{{n}}{eye}_2ndHO.png" for eye in "LR"),
        question="has 2 files that may be its label",
        answer="folder:1stHO",
    ),
    Layout(
        "HRF",
        {"images/0{n}_dr.jpg": "manual1/0{n}_dr.tif"},
        labels=("mask/0{n}_dr_mask.tif",),
        question="has 2 files that may be its label",
        answer="folder:manual1",
    ),
    Layout(
        "EyePACS",
        {f"train/{{n}}0_{eye}.jpeg": "" for eye in ("left", "right")},
        texts={"trainLabels.csv": "image,level\n10_left,0\n10_right,2\n"},
        notes="trainLabels.csv not read.*a column 'grade'",
    ),
    Layout(
        "Messidor-2",
        {"IMAGES/2005102{n}_43808_0100_PP.png": ""},
        texts={
            "messidor_data.csv": "image_id,adjudicated_dr_grade\n20051021_43808_0100_PP.png,0\n"
        },
        notes="messidor_data.csv not read.*a column 'grade'",
    ),
    Layout(
        "APTOS",
        {"train_images/000c1434d8d{n}.png": ""},
        texts={"train.csv": "id_code,diagnosis\n000c1434d8d1,2\n"},
        notes=r"files that are not scans ignored: 1 \(1 \.csv\)",
    ),
    Layout(
        "IDRiD-segmentation",
        {
            "A. Segmentation/1. Original Images/a. Training Set/IDRiD_0{n}.jpg": (
                "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/"
                "5. Optic Disc/IDRiD_0{n}_OD.tif"
            )
        },
        labels=(
            "A. Segmentation/2. All Segmentation Groundtruths/a. Training Set/"
            "1. Microaneurysms/IDRiD_0{n}_MA.tif",
        ),
        question="has 2 files that may be its label .*folder:MA or folder:OD",
        answer="folder:OD",
    ),
    Layout(
        "HAM10000",
        {
            "HAM10000_images_part_1/ISIC_002741{n}.jpg": (
                "HAM10000_segmentations_lesion_tschandl/ISIC_002741{n}_segmentation.png"
            )
        },
        texts={"HAM10000_metadata.csv": "lesion_id,image_id,dx\nH1,ISIC_0027411,bkl\n"},
    ),
    Layout(
        "ISIC-2018",
        {
            "ISIC2018_Task1-2_Training_Input/ISIC_000000{n}.jpg": (
                "ISIC2018_Task1_Training_GroundTruth/ISIC_000000{n}_segmentation.png"
            ),
            "ISIC2018_Task1-2_Test_Input/ISIC_001000{n}.jpg": "",
        },
        subjects=6,
    ),
    Layout(
        "REFUGE",
        {
            "Training400/Glaucoma/g000{n}.jpg": (
                "Annotation-Training400/Disc_Cup_Masks/Glaucoma/g000{n}.bmp"
            ),
            "Training400/Non-Glaucoma/n000{n}.jpg": (
                "Annotation-Training400/Disc_Cup_Masks/Non-Glaucoma/n000{n}.bmp"
            ),
        },
        subjects=6,
    ),
    Layout(
        "PH2",
        {
            "IMD00{n}/IMD00{n}_Dermoscopic_Image/IMD00{n}.bmp": (
                "IMD00{n}/IMD00{n}_lesion/IMD00{n}_lesion.bmp"
            )
        },
    ),
    Layout("CVC-ClinicDB", {"Original/{n}.tif": "Ground Truth/{n}.tif"}),
    Layout(
        "BUSI",
        {"benign/benign ({n}).png": "benign/benign ({n})_mask.png"},
        labels=("benign/benign ({n})_mask_1.png",),
        question="has 2 files that may be its label",
        answer="folder:mask",
    ),
    Layout(
        "Montgomery",
        {"CXR_png/MCUCXR_000{n}_0.png": "ManualMask/leftMask/MCUCXR_000{n}_0.png"},
        labels=("ManualMask/rightMask/MCUCXR_000{n}_0.png",),
        question="has 2 files that may be its label",
        answer="folder:leftMask",
    ),
    Layout("Shenzhen", {"CXR_png/CHNCXR_000{n}_0.png": "mask/CHNCXR_000{n}_0_mask.png"}),
    Layout(
        "GlaS",
        {"train_{n}.bmp": "train_{n}_anno.bmp", "testA_{n}.bmp": "testA_{n}_anno.bmp"},
        subjects=6,
    ),
    Layout("FIVES", {"train/Original/{n}_A.png": "train/Ground truth/{n}_A.png"}),
    Layout(
        "LIDC-slices",
        {
            "LIDC-IDRI-000{n}/nodule-0/images/slice-4.png": (
                "LIDC-IDRI-000{n}/nodule-0/mask-1/slice-4.png"
            )
        },
        labels=tuple(f"LIDC-IDRI-000{{n}}/nodule-0/mask-{r}/slice-4.png" for r in (0, 2, 3)),
        question="has 4 files that may be its label",
        answer="folder:mask-1",
    ),
    Layout(
        "LGG-Kaggle",
        {
            f"TCGA_CS_494{{n}}_19960909/TCGA_CS_494{{n}}_19960909_{z}.tif": (
                f"TCGA_CS_494{{n}}_19960909/TCGA_CS_494{{n}}_19960909_{z}_mask.tif"
            )
            for z in (1, 2)
        },
    ),
    Layout(
        "DSB-2018",
        {
            "stage1_train/00071198d05{n}/images/00071198d05{n}.png": (
                "stage1_train/00071198d05{n}/masks/a1.png"
            )
        },
        labels=("stage1_train/00071198d05{n}/masks/b2.png",),
        question="has 2 files that may be its label",
        answer="folder:a1",
    ),
)
LAYOUTS = (*VOLUMES, *PICTURES)


def scan(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(np.uint8)


def label(shape: tuple[int, ...]) -> np.ndarray:
    values = np.zeros(shape, np.uint8)
    values[2:5, 2:5] = 255 if len(shape) == 2 else 1
    return values


def write(path: Path, seed: int, is_label: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (8, 7) if suffix(path) in SUFFIXES_2D else (8, 7, 6)
    values = label(shape) if is_label else scan(seed, shape)
    if suffix(path) in SUFFIXES_2D:
        Pillow.fromarray(values).save(path)
    elif suffix(path) in (".nii", ".nii.gz"):
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    else:
        image = SimpleITK.GetImageFromArray(values.T)
        image.SetSpacing((2, 2, 2))
        SimpleITK.WriteImage(image, str(path))


def build(root: Path, layout: Layout) -> dict[str, str]:
    """Write the files of three cases; the label of each scan, as the data set means it."""
    pairs = {}
    for n in CASES:
        for seed, (image, mask) in enumerate(layout.pairs.items()):
            write(root / image.format(n=n), 10 * n + seed)
            if mask:
                write(root / mask.format(n=n), n, is_label=True)
            pairs[image.format(n=n)] = mask.format(n=n)
        for mask in (*layout.labels, *layout.unnamed):
            write(root / mask.format(n=n), n, is_label=True)
        for text, content in layout.texts.items():
            path = root / text.format(n=n)
            if suffix(path) and not path.name.startswith("."):
                write(path, 99 + n)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        if layout.dicom:
            save(root / layout.dicom.format(n=n), series(number=n, patient=f"P{n}"))
    return pairs


def pairs_of(dataset: Dataset, root: Path) -> dict[str, str]:
    return {
        case.images[0].relative_to(root).as_posix(): (
            case.label.relative_to(root).as_posix() if case.label else ""
        )
        for case in dataset.cases
    }


@pytest.mark.fault("H1", "names of 58 public layouts", "paired right, or one question")
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.name}: {layout.outcome}")
def test_a_public_data_set_is_paired_right_or_asked_about(tmp_path: Path, layout: Layout) -> None:
    expected = build(tmp_path, layout)
    if layout.question:
        with pytest.raises(ChoiceNeeded, match=layout.question):
            sources.find_dataset(tmp_path)
    else:
        dataset = sources.find_dataset(tmp_path)
        assert re.search(layout.notes, " | ".join(dataset.notes))
    if layout.answer:
        dataset = sources.find_dataset(tmp_path, layout.answer)
    unnamed = {mask.format(n=n) for mask in layout.unnamed for n in CASES}
    if layout.dicom:
        assert len(dataset.cases) == len(CASES)
    else:
        found = pairs_of(dataset, tmp_path)
        assert {scan: mask for scan, mask in found.items() if scan not in unnamed} == expected
    assert len({case.subject for case in dataset.cases}) == layout.subjects
    for case in dataset.cases:
        if case.images[0].relative_to(tmp_path).as_posix() in unnamed:
            with pytest.raises(DataError, match="looks like a label map"):
                read_case(case, 1)
        else:
            read_case(case, len(dataset.channel_names))


def test_there_are_25_layouts_of_volumes_and_10_of_pictures_at_least() -> None:
    assert len(VOLUMES) >= 25
    assert len(PICTURES) >= 10
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
