import base64
import gzip
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import selfvox
from selfvox.data.preparation.split import Split
from selfvox.data.preparation.store import open_store
from selfvox.errors import DataError
from selfvox.registration.pairs import (
    DUPLICATE,
    HELD_OUT,
    LABELLED,
    choose_pairs,
    keep_usable,
    usable_scans,
)


def picture(name):
    """A coarse picture that is like no other."""
    numbers = np.random.default_rng(list(name.encode()))
    return base64.b64encode(numbers.bytes(512)).decode()


def case(name, subject=None, contents=None, file=None, like=None):
    return SimpleNamespace(
        id=name,
        subject=subject or name,
        image_hash=f"file {file or name}",
        coarse_picture=picture(like or name),
        sha256={"images": contents or name},
    )


SPLIT = Split(train=("ann",), validation=("bob",), test=("cyd",), seed=0)
STORE = SimpleNamespace(cases=[case("ann"), case("bob"), case("cyd"), case("dan")])


@pytest.mark.parametrize(
    ("scan", "reason"),
    [
        (case("visit 2", subject="cyd"), HELD_OUT),
        (case("visit 2", subject="bob"), HELD_OUT),
        (case("renamed", contents="cyd"), HELD_OUT),
        # of the same file, but prepared by another median
        (case("renamed", file="cyd"), HELD_OUT),
        (case("renamed", file="bob", contents="ann"), HELD_OUT),
        # a resampled copy
        (case("renamed", like="cyd"), HELD_OUT),
        (case("renamed", like="ann"), LABELLED),
        (case("visit 2", subject="ann"), LABELLED),
        (case("renamed", contents="ann"), LABELLED),
        (case("again", contents="dan"), DUPLICATE),
        (case("again", file="dan"), DUPLICATE),
    ],
)
def test_scans_of_held_out_people_are_never_used_under_any_name(scan, reason):
    usable, left_out = usable_scans([case("dan"), scan, case("eve")], STORE, SPLIT)
    assert [usable_case.id for usable_case in usable] == ["dan", "eve"]
    assert left_out == {reason: 1}


def test_where_all_scans_are_held_out_none_is_left(shapes_store):
    store = open_store(shapes_store)
    names = tuple(scan.subject for scan in store.cases)
    with pytest.raises(DataError, match="no unlabelled scan is left"):
        keep_usable(store, store, Split(train=(), validation=(), test=names, seed=0))


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "most"),
    [(1, 9, 4), (3, 6, 6), (3, 4, 99), (100, 5, 24), (6, 2, 6), (6, 4, 24)],
)
def test_pairs_are_different_and_every_scan_has_a_partner_first(labelled, unlabelled, most):
    movings = [case(f"l{number}") for number in range(labelled)]
    fixeds = [case(f"u{number}") for number in range(unlabelled)]
    pairs = choose_pairs(movings, fixeds, most, seed=0)
    names = [(moving.id, fixed.id) for moving, fixed in pairs]
    assert len(set(names)) == len(names) == min(most, labelled * unlabelled)
    for side, count in ((0, labelled), (1, unlabelled)):
        used = Counter(pair[side] for pair in names)
        most_used, least_used = max(used.values()), min(used.values())
        assert len(used) == min(count, len(names))
        assert most_used - least_used <= 1


def test_the_choice_follows_from_the_seed():
    movings, fixeds = [case("l")], [case(f"u{number}") for number in range(20)]
    chosen = [[f.id for _, f in choose_pairs(movings, fixeds, 5, seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_test_scan_that_was_renamed_and_compressed_anew_is_recognised(shapes_store, tmp_path):
    store = open_store(shapes_store)
    split = store.split()
    file = shapes_store.parent / "scans" / "images" / f"{split.test[0]}.nii.gz"
    scans = tmp_path / "scans"
    scans.mkdir()
    anew = gzip.compress(gzip.decompress(file.read_bytes()), 1)
    assert anew != file.read_bytes()
    (scans / "anew.nii.gz").write_bytes(anew)
    selfvox.prepare(scans, out=tmp_path / "store", intensity="mri", workers=1)
    usable, left_out = usable_scans(open_store(tmp_path / "store").cases, store, split)
    assert usable == []
    assert left_out == {HELD_OUT: 1}
