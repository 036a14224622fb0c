"""The papers' protocols on small synthetic scans, with small networks and a few steps."""

import csv

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

import selfvox
from selfvox.commands import finetune, pretrain
from selfvox.errors import UsageError
from selfvox.studies import figures
from selfvox.studies.read_plan import PRESETS, read_plan

EDGE = 16


def shrunk(name, folder, method, **changes):
    """A preset with one of its methods, small scans and a small network; its path."""
    plan = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    plan["methods"] = {method: plan["methods"][method]}
    plan["prepare"]["size"] = [EDGE] * len(plan["prepare"]["size"])
    flat = plan.get("twins_2d", {})
    if flat:
        flat["methods"] = [method]
    for section in (plan["pretrain"], plan["finetune"], flat.get("pretrain"), flat.get("finetune")):
        if section:
            section["crop"] = [EDGE] * len(section["crop"])
            section["batch"] = 2
            if "network" in section:
                section["network"] |= {
                    "channels": [4, 8],
                    "strides": section["network"]["strides"][:2],
                }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**plan, **changes}, sort_keys=False), encoding="utf-8")
    return path


def rows(path):
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Draw nothing: pictures take most of the time, and have tests of their own."""
    monkeypatch.setattr(figures, "draw", lambda *_: [])
    for command in (pretrain, finetune):
        monkeypatch.setattr(command, "draw_curve", lambda *_: None)


@pytest.fixture
def brats(tmp_path):
    """Seven cases with four modalities and nested tumours."""
    shape = (20, 24, 18)  # no cube, so that `size` stretches the scans
    middle = np.array(shape)[:, None, None, None] / 2 - 0.5
    rng, at = np.random.default_rng(0), np.indices(shape) - middle
    for number in range(7):
        case = tmp_path / "BraTS" / f"Brats18_{number}"
        case.mkdir(parents=True)
        far = np.sqrt(((at - rng.uniform(-3, 3, 3)[:, None, None, None]) ** 2).sum(0))
        label = np.select([far < 2, far < 4, far < 6], [1, 4, 2], 0).astype(np.uint8)
        for channel, modality in enumerate(("t1", "t1ce", "t2", "flair")):
            scan = 100 + 20 * channel + 30 * label + rng.normal(0, 5, label.shape)
            nib.save(
                nib.Nifti1Image(scan.astype(np.float32), np.eye(4)),
                case / f"{case.name}_{modality}.nii.gz",
            )
        nib.save(nib.Nifti1Image(label, np.eye(4)), case / f"{case.name}_seg.nii.gz")
    return tmp_path / "BraTS"


@pytest.fixture
def fundus(tmp_path):
    """A table of twenty pictures of five grades."""
    rng, lines = np.random.default_rng(0), ["image,grade"]
    for number in range(20):
        picture = 40 * (number % 5) + rng.integers(0, 60, (20, 20, 3))
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"eye{number:02}.png")
        lines.append(f"eye{number:02}.png,{number % 5}")
    (tmp_path / "aptos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "aptos.csv"


def test_methods_of_a_corpus_are_left_out_without_one(tmp_path, capsys):
    plan = read_plan("brats2018", tmp_path)
    assert "left out, since they need --corpus PATH: RPL of corpus, Supervised" in (
        capsys.readouterr().err
    )
    assert not {"RPL of corpus", "Supervised"} & set(plan.methods)
    complete = read_plan("brats2018", tmp_path, corpus=tmp_path / "biobank")
    by_name = {method.name: method for method in complete.resolved_methods}
    assert by_name["Supervised"].is_supervised
    assert by_name["RPL of corpus"].pretrain["scans"] == str(tmp_path / "biobank")


def test_the_plan_of_the_proof_is_valid(tmp_path):
    path = PRESETS.parents[3] / "docs" / "studies" / "plans" / "oasis.yaml"
    plan = read_plan(str(path), corpus=tmp_path)
    assert {method.unlabelled_as for method in plan.resolved_methods} > {None}
    assert all(
        method.pretrain["scans"] == str(tmp_path)
        for method in plan.resolved_methods
        if isinstance(method.pretrain, dict)
    )
    with pytest.raises(UsageError, match="give --corpus PATH"):
        read_plan(str(path))


def test_brain_tumours_are_scored_by_region_in_3d_and_2d(brats, tmp_path):
    plan = shrunk(
        "brats2018", tmp_path, "Rotation", test=2, validation=1, fractions=[1.0], seeds=[0]
    )
    summary = selfvox.study(str(plan), data=brats, out=tmp_path / "out", scale=1e-5)
    assert {(row["method"], row["twin"]) for row in summary} == {
        ("scratch", None),
        ("Rotation", "scratch"),
        ("2D-scratch", None),
        ("2D-Rotation", "2D-scratch"),
    }
    names = [row["name"] for row in summary if row["method"] == "Rotation"]
    assert names == [
        "necrotic core",
        "oedema",
        "enhancing tumour",
        "WT",
        "TC",
        "ET",
        "mean of regions",
    ]
    means = {row["name"]: row["mean"] for row in summary if row["method"] == "Rotation"}
    assert means["mean of regions"] == pytest.approx((means["WT"] + means["TC"] + means["ET"]) / 3)
    pairs = {
        (row["comparison"], row["method"], row["twin"])
        for row in rows(tmp_path / "out" / "comparisons.csv")
    }
    assert pairs == {("3D minus 2D", name, f"2D-{name}") for name in ("scratch", "Rotation")}


def test_retinopathy_is_scored_by_kappa_over_all_folds(fundus, tmp_path):
    plan = shrunk("retinopathy", tmp_path, "Rotation", folds=2, validation=5, fractions=[1.0])
    summary = selfvox.study(str(plan), data=fundus, out=tmp_path / "out", scale=0.005)
    assert {(row["method"], row["score"], row["runs"], row["transductive"]) for row in summary} == {
        ("scratch", "quadratic_kappa", 3, False),
        ("Rotation", "quadratic_kappa", 3, True),
    }
    table = rows(tmp_path / "out" / "table.csv")
    for method in ("scratch", "Rotation"):
        answers = [row for row in table if row["method"] == method]
        # once for each of three seeds
        once = [f"eye{number:02}" for number in range(20)]
        assert sorted(row["case"] for row in answers) == sorted(3 * once)
        assert all(int(row["true"]) == int(row["case"][3:]) % 5 for row in answers)
        assert {row["fold"] for row in answers} == {"0", "1"}
