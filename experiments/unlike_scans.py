"""How often scans of a data set are taken for unlike it, and how often those of others are noticed.

    python experiments/unlike_scans.py DATA OUT

DATA contains the real data sets that the tests use. Every scan is prepared with the recipe of its
own set, and seven of each set with the recipes of all others; their profiles are kept in OUT. Sets
of several channels count as one set for each channel. Then, over random training scans:

- false alarms: the share of scans that other scans of the same set note or refuse;
- detections: the share of the scans of every other set that are noted or refused;
- kinds: the groups that `lint` makes of each set, and of a set with seven scans of another one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfvox.data.checks.kinds import group_alike
from selfvox.data.preparation.fit_recipe import fit_recipe
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.preparation.scan_profile import ScanProfile, measure_profile
from selfvox.data.preparation.scan_range import NOTED, REFUSED, ScanRange, coordinates
from selfvox.data.sources import Dataset, find_dataset
from selfvox.errors import DataError
from selfvox.settings.verbs import PreparationSettings

FOLDERS = {
    "hippocampus": "Task04_Hippocampus",
    "oasis": "oasis_subcortical/table.csv",
    "ds002748": "ds002748_bids",
    "sarcoma": "Dataset051_Sarcoma",
    "brats": "brats_cases",
    "ct_abdomen": "ct_abdomen/ct_3mm.nii.gz",
    "dicom_brain": "dicom_brain",
}
OTHERS = 7  # scans of each other set
COUNTS = (1, 2, 3, 5, 10, 20)  # training scans
DRAWS = 100  # for each number of them, at least
MANY = 20  # scans from which a set has false alarms of its own

Profiles = dict[str, dict[str, list[ScanProfile | None]]]  # recipe's set -> scans' set -> scans


def single_channel_sets(data: Path) -> dict[str, Dataset]:
    """Each data set, or each channel of it."""
    sets = {}
    for name, folder in FOLDERS.items():
        dataset = find_dataset(data / folder)
        if len(dataset.channel_names) == 1:
            sets[name] = dataset
            continue
        for index, channel in enumerate(dataset.channel_names):
            cases = tuple(
                dataclasses.replace(case, images=(case.images[index],)) for case in dataset.cases
            )
            single = dataclasses.replace(dataset, cases=cases, channel_names=(channel,))
            sets[f"{name} {channel}"] = single
    return sets


def measure(sets: dict[str, Dataset]) -> Profiles:
    """The profile of each scan with each recipe; None where the recipe refuses it."""
    settings = PreparationSettings(workers=1)
    recipes = {name: fit_recipe(dataset, settings) for name, dataset in sets.items()}
    profiles: Profiles = {name: {other: [] for other in sets} for name in sets}
    for scans, dataset in sets.items():
        step = max(1, len(dataset.cases) // (OTHERS - 1))
        for number, case in enumerate(dataset.cases):
            image = read_case(case, 1)
            for name, recipe in recipes.items():
                if name != scans and number % step:
                    continue
                try:
                    prepared = recipe.apply(image)
                    profile = measure_profile(image, prepared.data, prepared.geometry)
                except DataError:
                    profile = None
                profiles[name][scans].append(profile)
        print(f"measured {scans}", flush=True)
    return profiles


def distance(ranges: ScanRange, profile: ScanProfile | None) -> float:
    """Infinite for a scan that the recipe refuses."""
    return np.inf if profile is None else ranges.compare(profile).distance


def false_alarms(profiles: Sequence[ScanProfile], count: int, rng: np.random.Generator) -> str:
    """Share noted / share refused (largest distance) by `count` other scans of the same set."""
    distances = []
    for draw in range(max(DRAWS, len(profiles))):
        index = draw % len(profiles)
        others = np.delete(np.arange(len(profiles)), index)
        chosen = rng.choice(others, min(count, len(others)), replace=False)
        ranges = ScanRange.of([profiles[other] for other in chosen], ("image",))
        distances.append(distance(ranges, profiles[index]))
    return shares(distances) + f" ({max(distances):.1f})"


def shares(distances: Sequence[float]) -> str:
    """Share noted / share refused."""
    values = np.array(distances)
    noted = np.mean((values >= NOTED) & (values < REFUSED))
    return f"{noted:.2f}/{np.mean(values >= REFUSED):.2f}"


def main() -> None:
    """Measure, if that was not done before, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    profiles = cached_profiles(arguments.data, arguments.out / "profiles.json")
    rng = np.random.default_rng(0)

    print("\nfalse alarms, noted/refused (largest distance), by training scans", COUNTS, "and all")
    for name, sets in profiles.items():
        if len(sets[name]) >= MANY:
            counts = (*(count for count in COUNTS if count < len(sets[name]) - 1), 10**6)
            print(name, *(false_alarms(sets[name], count, rng) for count in counts), sep=" | ")

    print("\nscans of other sets, noted/refused (median distance), by all training scans")
    print("trained on", *profiles, sep=" | ")
    for name, sets in profiles.items():
        ranges = ScanRange.of(sets[name], ("image",))
        cells = []
        for other, members in sets.items():
            distances = [distance(ranges, profile) for profile in members]
            cells.append(
                "" if other == name else f"{shares(distances)} ({np.median(distances):.1f})"
            )
        print(f"{name} ({ranges.count})", *cells, sep=" | ")

    print("\nkinds: groups of a set; scans of another set that are in the group of this one")
    for name, sets in profiles.items():
        own = [coordinates(profile) for profile in sets[name]]
        if len(own) < MANY:
            continue
        joined = []
        for other, members in sets.items():
            added = [coordinates(profile) for profile in members if profile is not None]
            if other == name or not added:
                continue
            main_group = set(group_alike(np.stack(own + added))[0])
            inside = sum(len(own) + index in main_group for index in range(len(added)))
            if inside:
                joined.append(f"{inside} of {len(added)} {other}")
        sizes = [len(group) for group in group_alike(np.stack(own))]
        print(name, sizes, "; ".join(joined) or "none", sep=" | ")


def cached_profiles(data: Path, file: Path) -> Profiles:
    """The profiles in the file, measured if it does not exist."""
    if not file.exists():
        profiles = measure(single_channel_sets(data))
        values = {
            name: {
                other: [profile and profile.to_dict() for profile in members]
                for other, members in sets.items()
            }
            for name, sets in profiles.items()
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    values = json.loads(file.read_text())
    return {
        name: {
            other: [profile and ScanProfile.from_dict(profile) for profile in members]
            for other, members in sets.items()
        }
        for name, sets in values.items()
    }


if __name__ == "__main__":
    main()
