"""Local, swarm and central on the same held-out patients, as figures with intervals.

Three ways to ask what the swarm brought, all in `Comparison`:

- *everywhere*: a model's AUC at each hospital's held-out patients, averaged over the hospitals. For "local"
  also averaged over the hospitals' own models, each of which is tested at all hospitals, as in
  Warnat-Herresthal et al. 2021. This is the headline: every model faces the same patients.
- *at home*: each hospital's own model at its own held-out patients only. The more lenient question for
  "local": is joining worth it for this hospital?
- *pooled*: one AUC over all held-out patients in one list. It also asks that a probability means the same at
  every hospital.

All models get each patient as that patient's own hospital prepared the values, so a local model is not
punished for another hospital's units. The second central arm (``central_together``) is what a data centre
would do: gaps and scales from all rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from konsil.errors import StudyError
from konsil.evaluation import metrics
from konsil.evaluation.metrics import Interval
from konsil.evaluation.result import HospitalResult


class HospitalComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One hospital's held-out patients. ``local``: its own model. ``local_mean``: the mean of all hospitals'
    own models. ``problem``: why there is no AUC, in words; the AUCs are None then.
    """

    name: str
    train_patients: int
    patients: int
    positives: int
    problem: str = ""
    local: Interval | None = None
    local_mean: Interval | None = None
    swarm: Interval | None = None
    central: Interval | None = None
    central_together: Interval | None = None
    swarm_minus_local: Interval | None = None
    p_swarm_local: float | None = None


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """Other figures of one arm over all held-out patients; for "local", the mean of the hospitals' models."""

    pooled_auc: Interval
    accuracy: float
    brier: float
    log_loss: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """See the module. ``left_out``: hospital -> why it gives no AUC; means are over the others."""

    hospitals: tuple[HospitalComparison, ...]
    local: Interval
    local_at_home: Interval
    swarm: Interval
    central: Interval
    central_together: Interval | None
    swarm_minus_local: Interval
    swarm_minus_home: Interval
    swarm_minus_central: Interval
    arms: Mapping[str, Arm]
    left_out: Mapping[str, str]
    confidence: float = metrics.CONFIDENCE


def compare(hospitals: tuple[HospitalResult, ...]) -> Comparison:
    """The comparison of a study's predictions.

    Raises:
        StudyError: no hospital has two held-out patients of each class.
    """
    names = tuple(hospital.name for hospital in hospitals)
    left_out = {h.name: why for h in hospitals if (why := metrics.why_no_auc(h.labels))}
    kept = [h for h in hospitals if h.name not in left_out]
    if not kept:
        raise StudyError(
            "No hospital holds out two patients of each class, so there is no AUC to compare.",
            safe="The models are untouched.",
            do="Use a data set with more patients of the rarer class.",
        )
    together = all(h.central_together for h in hospitals)
    results = {h.name: metrics.delong(h.labels, _rows(h, names, together=together)) for h in kept}
    width = len(names) + 2 + together
    swarm, central = len(names), len(names) + 1

    local_mean = np.zeros(width)
    local_mean[: len(names)] = 1 / len(names)

    def one(column: int) -> metrics.Floats:
        weights = np.zeros(width)
        weights[column] = 1.0
        return weights

    def mean(weights: metrics.Floats) -> Interval:
        return metrics.mean_contrast(list(results.values()), weights)

    home = _at_home(results, names, width)
    return Comparison(
        hospitals=tuple(
            _hospital(h, results.get(h.name), names, left_out, together=together) for h in hospitals
        ),
        local=mean(local_mean),
        local_at_home=home[0],
        swarm=mean(one(swarm)),
        central=mean(one(central)),
        central_together=mean(one(central + 1)) if together else None,
        swarm_minus_local=mean(one(swarm) - local_mean),
        swarm_minus_home=home[1],
        swarm_minus_central=mean(one(swarm) - one(central)),
        arms=_arms(hospitals, names, together=together),
        left_out=left_out,
    )


def _rows(hospital: HospitalResult, names: tuple[str, ...], *, together: bool) -> list[tuple[float, ...]]:
    """Probabilities, one row a model: each hospital's own, swarm, central, and central_together if there."""
    rows = [*(hospital.local[name] for name in names), hospital.swarm, hospital.central]
    return [*rows, hospital.central_together] if together else rows


def _at_home(
    results: Mapping[str, metrics.Delong], names: tuple[str, ...], width: int
) -> tuple[Interval, Interval]:
    """Mean of each hospital's own model at home, and the swarm's mean minus it.

    Each hospital needs another column, so the columns are brought to (own, swarm) first.
    """
    home = []
    for name, result in results.items():
        columns = [names.index(name), len(names)]
        home.append(
            metrics.Delong(result.auc[columns], result.covariance[np.ix_(columns, columns)], result.pairs)
        )
    assert all(len(result.auc) == width for result in results.values())  # noqa: S101 - columns as laid out above
    return metrics.mean_contrast(home, (1.0, 0.0)), metrics.mean_contrast(home, (-1.0, 1.0))


def _hospital(
    hospital: HospitalResult,
    result: metrics.Delong | None,
    names: tuple[str, ...],
    left_out: Mapping[str, str],
    *,
    together: bool,
) -> HospitalComparison:
    bare = HospitalComparison(
        name=hospital.name,
        train_patients=hospital.train_patients,
        patients=len(hospital.labels),
        positives=sum(hospital.labels),
        problem=left_out.get(hospital.name, ""),
    )
    if result is None:
        return bare
    own, swarm = names.index(hospital.name), len(names)
    width = len(result.auc)
    local_mean = np.array([1 / len(names)] * len(names) + [0.0] * (width - len(names)))
    return msgspec.structs.replace(
        bare,
        local=metrics.auc_interval(result, own),
        local_mean=metrics.mean_contrast([result], local_mean),
        swarm=metrics.auc_interval(result, swarm),
        central=metrics.auc_interval(result, swarm + 1),
        central_together=metrics.auc_interval(result, swarm + 2) if together else None,
        swarm_minus_local=metrics.mean_contrast([result], np.eye(width)[swarm] - np.eye(width)[own]),
        p_swarm_local=metrics.paired_p_value(result, swarm, own),
    )


def _arms(hospitals: tuple[HospitalResult, ...], names: tuple[str, ...], *, together: bool) -> dict[str, Arm]:
    """Figures over all held-out patients in one list."""
    labels = np.concatenate([hospital.labels for hospital in hospitals])
    rows = np.concatenate([np.array(_rows(h, names, together=together)) for h in hospitals], axis=1)
    result = metrics.delong(labels, rows)
    columns = {
        "local": list(range(len(names))),
        "swarm": [len(names)],
        "central": [len(names) + 1],
    }
    if together:
        columns["central_together"] = [len(names) + 2]
    arms = {}
    for arm, chosen in columns.items():
        weights = np.zeros(len(rows))
        weights[chosen] = 1 / len(chosen)
        arms[arm] = Arm(
            pooled_auc=metrics.mean_contrast([result], weights)
            if len(chosen) > 1
            else metrics.auc_interval(result, chosen[0]),
            accuracy=float(np.mean([metrics.accuracy(labels, rows[c]) for c in chosen])),
            brier=float(np.mean([metrics.brier(labels, rows[c]) for c in chosen])),
            log_loss=float(np.mean([metrics.log_loss(labels, rows[c]) for c in chosen])),
        )
    return arms
