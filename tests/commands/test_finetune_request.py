"""What `finetune` cannot do is refused before any scan is prepared, and says what to do."""

import pytest
from torch import nn

import selfvox
from selfvox.commands.finetune import finetune
from selfvox.data import phantom, sources
from selfvox.data.preparation.open_or_build_store import open_or_build_store
from selfvox.data.preparation.split import read_split
from selfvox.errors import DataError, UsageError, WeightsError
from selfvox.models.build import build_encoder, plan_encoder
from selfvox.runs.weights import read_network
from selfvox.training import finetune_request


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three labelled scans."""
    folder = tmp_path_factory.mktemp("scans")
    phantom.write(folder, "shapes", count=3)
    return folder


@pytest.fixture(autouse=True)
def no_preparation(monkeypatch):
    """Preparing any scan fails the test."""

    def prepare(*_, **__):
        raise AssertionError("a scan was prepared")

    monkeypatch.setattr("selfvox.commands.finetune.open_or_build_store", prepare)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"labels": 4}, "labels: 4 labelled subjects were asked for, and .* has 3 to .* 1 to 3"),
        ({"folds": 4}, "folds: 4 folds of 3 labelled subjects of .* are impossible; use 2 to 3"),
        ({"folds": 3, "labels": 2}, "folds: 3 folds of 2 labelled .*; use 2 to 2"),
        ({"folds": 2, "fraction": 0.2}, "folds: 2 folds of 1 labelled .*; a fold needs at least"),
        ({"fold": "1/4"}, "fold: 4 folds of 3 labelled subjects .*; use 2 to 3"),
        ({"head": "linear", "decoder_dropout": 0.1}, "decoder_dropout: a linear head has no"),
        ({"network": "resdual"}, "no encoder is called 'resdual'; did you mean 'residual'"),
        ({"crop": (16, 20, 16)}, "crop: 20 is no multiple of 8; the nearest are 16 and 24"),
        ({"crop": (16, 16, 16), "slices": "axial"}, "crop: names 3 edges and the scans have 2"),
        ({"balance": True}, "balance: is for classification, but .* has labels"),
        ({"mirror": ("left-rigth",)}, "mirror: 'left-rigth' .*; did you mean 'left-right'"),
        ({"regions": "whole"}, "regions: 'whole' is not NAME=VALUE,VALUE"),
    ],
)
def test_an_impossible_request_is_refused(scans, tmp_path, settings, reason):
    with pytest.raises(UsageError, match=reason):
        selfvox.finetune(scans, out=tmp_path / "run", encoder="none", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("counts", [{"labels": 1}, {"fraction": 0.3}])
def test_with_one_labelled_subject_the_teacher_is_asked_for(scans, tmp_path, counts):
    options = {"out": tmp_path / "run", "encoder": "none", "unlabelled": scans, **counts}
    with pytest.raises(UsageError, match=r'"atlas" for anatomy .*"network" for lesions'):
        selfvox.finetune(scans, **options)
    assert not (tmp_path / "run").exists()
    for teacher in ("network", "both", "atlas"):
        with pytest.raises(AssertionError, match="a scan was prepared"):
            selfvox.finetune(scans, teacher=teacher, **options | {"out": tmp_path / teacher})


def test_two_subjects_that_train_or_validate_choose_the_teacher(scans, shapes_store, tmp_path):
    options = {"encoder": "none", "unlabelled": scans}
    # two of the store validate
    for place, labels in ((scans, 2), (shapes_store, 1)):
        with pytest.raises(AssertionError, match="a scan was prepared"):
            selfvox.finetune(place, out=tmp_path / str(labels), labels=labels, **options)


def test_scans_without_labels_are_refused(tmp_path):
    phantom.write(tmp_path / "bare", "shapes", count=2, labelled=0)
    with pytest.raises(DataError, match=r"has neither labels nor grades; .*`selfvox pretrain`"):
        selfvox.finetune(tmp_path / "bare", out=tmp_path / "run", encoder="none")


def test_a_store_without_labels_is_refused(tmp_path):
    phantom.write(tmp_path / "bare", "shapes", count=2, labelled=0)
    store = selfvox.prepare(tmp_path / "bare", out=tmp_path / "store", workers=1)
    with pytest.raises(DataError, match=r"store: has neither labels nor grades"):
        selfvox.finetune(store, out=tmp_path / "run", encoder="none")


def test_what_is_no_encoder_is_named(scans, shapes_store, tmp_path):
    with pytest.raises(WeightsError, match=r"is a store of prepared scans, .*`selfvox pretrain`"):
        selfvox.finetune(scans, out=tmp_path / "run", encoder=shapes_store)
    with pytest.raises(WeightsError, match=r"is a folder of scans, .*`selfvox pretrain`"):
        selfvox.finetune(scans, out=tmp_path / "run", encoder=scans)


def test_an_unfinished_pre_training_is_named(scans, tmp_path):
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "run.json").write_text('{"verb": "pretrain", "status": "stopped"}')
    with pytest.raises(
        WeightsError, match=r"has not finished; go on with it first .*settings.yaml"
    ):
        selfvox.finetune(scans, out=tmp_path / "run", encoder=tmp_path / "pre")


def test_an_encoder_may_be_a_python_object(shapes_store, tmp_path, small, monkeypatch):
    """It keeps its weights while it is frozen."""
    monkeypatch.undo()
    settings = selfvox.finetune.settings(
        labelled=shapes_store, out=tmp_path / "run", encoder="none", steps=1, freeze="always",
        crop=small["crop"], device="cpu",
    )  # fmt: skip
    encoder = build_encoder(plan_encoder({"channels": (4, 8)}, small["crop"], (1, 1, 1)), 3, 1)
    run = finetune(settings, encoder=encoder)
    tensors, card = read_network(run / "network")
    assert card.encoder == "passed as a module"
    for name, parameter in encoder.named_parameters():
        assert (tensors[f"encoder.{name}"] == parameter).all()


def test_subjects_of_a_store_are_counted_by_their_use(shapes_store, tmp_path):
    split = read_split(shapes_store / "split.json")
    labelled = len(split.train) + len(split.validation)
    with pytest.raises(UsageError, match=f"use 2 to {labelled}$"):
        selfvox.finetune(shapes_store, out=tmp_path / "run", encoder="none", folds=labelled + 1)
    with pytest.raises(UsageError, match=f"give 1 to {len(split.train)}$"):
        selfvox.finetune(shapes_store, out=tmp_path / "run", encoder="none", labels=labelled)
    assert not (tmp_path / "run").exists()


def test_dropout_after_no_activation_is_refused_first(scans, tmp_path, monkeypatch):
    settings = selfvox.finetune.settings(
        labelled=scans, out=tmp_path / "run", encoder="none", encoder_dropout=0.3
    )
    monkeypatch.setattr(finetune_request, "find_dataset", None)  # lists no scans
    with pytest.raises(UsageError, match="dropout: Conv3d has no activation layer to drop"):
        finetune(settings, encoder=nn.Conv3d(1, 4, 3))


def test_scans_are_listed_once(scans, tmp_path, monkeypatch):
    listed = []

    def find_dataset(root, source="auto"):
        listed.append(root)
        return sources.find_dataset(root, source)

    def prepare(*arguments, **options):
        open_or_build_store(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("selfvox.training.finetune_request.find_dataset", find_dataset)
    monkeypatch.setattr("selfvox.data.preparation.open_or_build_store.find_dataset", find_dataset)
    monkeypatch.setattr("selfvox.commands.finetune.open_or_build_store", prepare)
    with pytest.raises(KeyboardInterrupt):
        selfvox.finetune(scans, out=tmp_path / "run", encoder="none", workers=1, device="cpu")
    assert (tmp_path / "run" / "store" / "manifest.json").exists()
    assert listed == [scans]
