import pytest

import selfvox
from selfvox.data import phantom
from selfvox.errors import DataError, UsageError
from selfvox.runs.weights import read_network


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlabelled") / "scans"
    phantom.write(folder, "shapes", count=2, labelled=0, seed=9)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    (folder / "dataset.json").unlink()
    return folder / "images"


def test_copies_on_unlabelled_anatomies_train_too(shapes_store, tmp_path, small, scans, capsys):
    out = tmp_path / "run"
    options = dict(encoder="none", out=out, labels=1, steps=4, unlabelled=scans, workers=1)
    selfvox.finetune(shapes_store, **options, **small)
    printed = capsys.readouterr().err
    assert "2 registrations of 1 labelled to 2 of 2 unlabelled scans" in printed
    assert "2 pairs of labelled scans" in printed  # the two validation scans check it
    assert (out / "copies" / "copies.png").exists()
    _, card = read_network(out / "network")
    names = {"other-sub-001", "other-sub-002"}
    assert names <= set(card.seen["subjects"])


def test_scans_prepared_in_another_way_are_refused(shapes_store, tmp_path, small, scans):
    store = tmp_path / "store"
    selfvox.prepare(scans, out=store, size=(16, 16, 16), workers=1)
    with pytest.raises(DataError, match="prepared in another way than the labelled"):
        selfvox.finetune(
            shapes_store, encoder="none", out=tmp_path / "run", unlabelled=store, **small
        )


def test_registrations_without_unlabelled_scans_are_refused():
    with pytest.raises(UsageError, match="registrations: "):
        selfvox.finetune("scans", encoder="none", out="run", registrations=3)
