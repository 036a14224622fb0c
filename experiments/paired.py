"""How two methods of a study differ, neither of which is the other's from-scratch twin.

    python experiments/paired.py STUDY "relative_location longer" "scratch longer"

Runs are paired by seed and case, and by pre-training seed where both have some, as in a study's
tables. For each number of labels at which both are done: the mean difference with its 95 %
interval, the median and the wins.
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
    parser.add_argument("reference")
    arguments = parser.parse_args()
    study = arguments.study
    names = (arguments.method, arguments.reference)
    # of the plan only the names matter here: the run folders record their own settings
    methods: dict[str, Any] = {name: {"pretrain": None} for name in names}
    plan = dataclasses.replace(load_plan(study / "plan.yaml"), methods=methods)
    results = read_results(plan, study)
    rows = compare_methods(results, [names])
    if not rows:
        raise SystemExit(f"{study}: {names[0]} and {names[1]} have no number of labels in common")
    for row in rows:
        if row["name"] == results[0].overall:
            print(
                f"{row['labels']} labels: {row['difference']:+.3f} "
                f"({row['low']:+.3f} to {row['high']:+.3f}), "
                f"median {row['difference_median']:+.3f}, {row['wins']} of {row['pairs']}"
            )


if __name__ == "__main__":
    main()
