"""The case of a sample is the one that a plain loop over all cases would draw."""

from types import SimpleNamespace

import numpy as np

from selfvox.data.sampling.crops import Crops
from selfvox.data.sampling.whole_scans import WholeScans

CASES = [
    SimpleNamespace(id=str(number), subject=str(number), shape=(4, 4), spacing_mm=(1.0, 1.0))
    for number in range(23)
]
# the numbers of classes may have gaps
ANSWERS = {case.id: (0, 2, 2, 5)[number % 4] for number, case in enumerate(CASES)}
STORE = SimpleNamespace(
    crop=lambda case, start, size: np.full((1, *size), float(case.id), np.float32)
)


def shown(seed, **options):
    data = WholeScans(STORE, CASES, (2, 2), seed, ANSWERS, **options)
    return [int(data[sample]["image"].max()) for sample in range(100)]


def test_a_class_is_drawn_first_and_then_one_of_its_cases():
    expected = []
    for sample in range(100):
        rng = np.random.default_rng((3, 1, sample))
        answer = rng.choice([0, 2, 5])
        members = [number for number in range(23) if ANSWERS[str(number)] == answer]
        expected.append(members[rng.integers(len(members))])
    assert shown(3, balance=True) == expected


def test_epochs_have_the_same_order_as_those_of_crops():
    orders = [np.random.default_rng((3, 0, epoch)).permutation(23) for epoch in range(5)]
    expected = np.concatenate(orders)[:100].tolist()
    assert shown(3) == expected
    crops = Crops(STORE, CASES, (2, 2), 3)
    assert [int(crops[sample]["subject"]) for sample in range(100)] == expected
