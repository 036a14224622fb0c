"""How do two methods of a study differ, neither of which is the other's from-scratch twin?

    python benchmarks/paired.py STUDY "relative_location longer" "scratch longer"

Pairs draws of labels and cases, and pre-trainings where both have some, by the study's own function: mean with its
interval of 95 %, median and wins, for each number of labels at which both are done.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from selfvox.studies.plan import load_plan
from selfvox.studies.results import read_results
from selfvox.studies.table import compare_methods


def main() -> None:
    """Print a line for each number of labels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("method")
    parser.add_argument("other")
    said = parser.parse_args()
    # what the runs were made with stands in their folders; of the plan only the names count
    both: dict[str, Any] = {name: {"pretrain": None} for name in (said.method, said.other)}
    found = read_results(
        dataclasses.replace(load_plan(said.study / "plan.yaml"), methods=both), said.study
    )
    rows = compare_methods(found, [(said.method, said.other)])
    if not rows:
        raise SystemExit(
            f"{said.study}: no number of labels at which both {said.method} and {said.other} are done"
        )
    for row in rows:
        if row["name"] == found[0].overall:
            print(
                f"{row['labels']} labels: {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}), "
                f"median {row['difference_median']:+.3f}, {row['wins']} of {row['pairs']}"
            )


if __name__ == "__main__":
    main()
