# ruff: noqa: INP001, T201 - a script that prints
"""Does learning together help? Local, swarm and central on each data set, over several seeds.

    python experiments/local_swarm_central.py [--data FOLDER] [--seeds 10] [NAME ...]

Prints one line a seed and the means: AUC averaged over the hospitals' held-out patients.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from konsil.evaluation import experiment
from konsil.evaluation.compare import Comparison, compare
from konsil.evaluation.datasets import DATASETS, load, load_raw
from konsil.evaluation.preparation import prepare_together

COLUMNS = ("local", "home", "swarm", "central", "together", "pooled local", "pooled swarm", "pooled central")


def figures(comparison: Comparison) -> tuple[float, ...]:
    """The columns' values of one seed."""
    together = comparison.central_together
    return (
        comparison.local.value,
        comparison.local_at_home.value,
        comparison.swarm.value,
        comparison.central.value,
        together.value if together else float("nan"),
        *(comparison.arms[arm].pooled_auc.value for arm in ("local", "swarm", "central")),
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(DATASETS), help="data sets")
    parser.add_argument("--data", type=Path, default=None, help="the folder with the data sets' folders")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    for name in arguments.names:
        print(f"\n{name}\nseed  " + "  ".join(COLUMNS))
        rows = []
        for seed in range(arguments.seeds):
            hospitals = load(name, arguments.data, seed)
            together = prepare_together(load_raw(name, arguments.data, seed))
            rows.append(figures(compare(experiment.run(hospitals, seed, together))))
            print(f"{seed:4}  " + "  ".join(f"{value:.3f}" for value in rows[-1]), flush=True)
        for label, reduce in (("mean", statistics.mean), ("  sd", statistics.stdev)):
            if len(rows) > 1:
                print(f"{label}  " + "  ".join(f"{reduce(column):.3f}" for column in zip(*rows, strict=True)))


if __name__ == "__main__":
    main()
