"""Fills in what is missing and brings values to one scale: at each hospital alone, or with all rows pooled.

A hospital that standardises with its own training rows shares nothing and is safe from another's units:
x and 10 x standardise to the same value. The price is that a true difference between the hospitals'
patients (older here, sicker there) is removed with the scale. `prepare_together` keeps it, as a data centre
would that sees all rows; comparing both shows what the privacy costs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

CLIP = 5.0
"""Standard deviations: a laboratory's typing error must not outweigh a hospital's other patients."""


@dataclass(frozen=True)
class Rows:
    """Patients. ``values``: float64 [patients, features]. ``labels``: int64 [patients], 1 is positive."""

    values: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """How many patients."""
        return len(self.labels)


@dataclass(frozen=True)
class Hospital:
    """A hospital's patients. Models learn from ``train``, rounds are scored on ``validation``, and ``test``
    is for the final comparison only.
    """

    name: str
    features: tuple[str, ...]
    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True)
class Scale:
    """Median, mean and standard deviation of training rows: float64 [features] each."""

    median: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]

    def apply(self, rows: Rows) -> Rows:
        """Rows without gaps, standardised, within `CLIP` deviations of the mean."""
        filled = np.where(np.isnan(rows.values), self.median, rows.values)
        return Rows(np.clip((filled - self.mean) / self.deviation, -CLIP, CLIP), rows.labels)


def measure(values: npt.NDArray[np.float64]) -> Scale:
    """The scale of training rows float64 [patients, features]; a feature never recorded becomes 0."""
    never = np.isnan(values).all(axis=0)
    median = np.zeros(values.shape[1])
    median[~never] = np.nanmedian(values[:, ~never], axis=0)
    filled = np.where(np.isnan(values), median, values)
    deviation = filled.std(axis=0)
    return Scale(median, filled.mean(axis=0), np.where(deviation > 0, deviation, 1.0))


def prepare_locally(hospitals: Mapping[str, Hospital]) -> dict[str, Hospital]:
    """Each hospital's rows on the scale of its own training rows."""
    return {name: _scaled(hospital, measure(hospital.train.values)) for name, hospital in hospitals.items()}


def prepare_together(hospitals: Mapping[str, Hospital]) -> dict[str, Hospital]:
    """All rows on the scale of the pooled training rows."""
    scale = measure(np.concatenate([hospital.train.values for hospital in hospitals.values()]))
    return {name: _scaled(hospital, scale) for name, hospital in hospitals.items()}


def _scaled(hospital: Hospital, scale: Scale) -> Hospital:
    return replace(
        hospital,
        train=scale.apply(hospital.train),
        validation=scale.apply(hospital.validation),
        test=scale.apply(hospital.test),
    )
