"""How good predictions are, with intervals: DeLong's AUC, accuracy, Brier score, log loss.

DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837-845; ranks as in Sun and Xu, IEEE Signal Process
Lett 2014;21:1389-1393. Intervals speak of other patients of the same hospitals, given the models: they do
not hold what another training run would change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95

MIN_OF_CLASS = 2
"""DeLong's variance needs two patients of each class."""

_CERTAIN = 1e-15
"""Probabilities are kept this far from 0 and 1 in the log loss, as scikit-learn does for float64."""


class Interval(NamedTuple):
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


class Delong(NamedTuple):
    """AUCs of several models on the same patients.

    ``auc``: float64 [models]. ``covariance``: float64 [models, models]. ``pairs``: patients in the smaller
    class.
    """

    auc: Floats
    covariance: Floats
    pairs: int


def why_no_auc(labels: npt.ArrayLike) -> str:
    """Why these patients give no AUC with an interval, in words; empty where they do."""
    array = np.asarray(labels)
    positives = int((array == 1).sum())
    negatives = len(array) - positives
    for count, name in ((positives, "positive"), (negatives, "negative")):
        if count < MIN_OF_CLASS:
            return f"only {count} {name} among {len(array)} held-out patients"
    return ""


def delong(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Delong:
    """AUCs and their covariance.

    Args:
        labels: 0 or 1 [patients].
        scores: one row a model, float [models, patients]; higher means more likely positive.

    Raises:
        ValueError: fewer than two patients of a class, another shape, or a score that is not finite.
    """
    truth = np.asarray(labels)
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if rows.shape[1:] != truth.shape or not np.isfinite(rows).all():
        raise ValueError("scores are finite, one for each label")
    if problem := why_no_auc(truth):
        raise ValueError(problem)
    positive, negative = rows[:, truth == 1], rows[:, truth != 1]
    m, n = positive.shape[1], negative.shape[1]
    ranks = np.array([midranks(row) for row in np.hstack([positive, negative])])
    within_positive = np.array([midranks(row) for row in positive])
    within_negative = np.array([midranks(row) for row in negative])
    # For each positive the share of negatives below it, for each negative the share of positives above it.
    by_positive = (ranks[:, :m] - within_positive) / n
    by_negative = 1.0 - (ranks[:, m:] - within_negative) / m
    covariance = np.atleast_2d(np.cov(by_positive)) / m + np.atleast_2d(np.cov(by_negative)) / n
    return Delong(by_positive.mean(axis=1), covariance, min(m, n))


def midranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks. float64 [n] -> float64 [n]."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2
    return np.asarray(mean_rank[place], dtype=np.float64)


def auc_interval(result: Delong, model: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """One model's AUC with an interval inside 0 to 1 (normal on the logit scale).

    Where every positive ranks above every negative (or below), DeLong's variance is 0 and would claim
    certainty. Then the interval is the exact binomial one for as many independent pairs as the smaller
    class allows, all of them ranked alike.
    """
    auc = float(result.auc[model])
    tail = (1 - confidence) / 2
    if auc >= 1.0:
        return Interval(1.0, tail ** (1 / result.pairs), 1.0)
    if auc <= 0.0:
        return Interval(0.0, 0.0, 1.0 - tail ** (1 / result.pairs))
    reach = _z(confidence) * math.sqrt(float(result.covariance[model, model])) / (auc * (1 - auc))
    middle = math.log(auc / (1 - auc))
    return Interval(auc, _logistic(middle - reach), _logistic(middle + reach))


def mean_contrast(
    results: Sequence[Delong], weights: npt.ArrayLike, confidence: float = CONFIDENCE
) -> Interval:
    """The mean over hospitals of a weighted sum of models' AUCs, e.g. (1, -1) for a paired difference.

    Args:
        results: the same models on each hospital's patients; hospitals are independent.
        weights: float [models].
        confidence: of the interval (normal, cut to what such a sum can reach).
    """
    chosen = np.asarray(weights, dtype=np.float64)
    count = len(results)
    value = sum(float(chosen @ result.auc) for result in results) / count
    variance = sum(float(chosen @ result.covariance @ chosen) for result in results) / count**2
    reach = _z(confidence) * math.sqrt(max(variance, 0.0))
    least, most = float(chosen[chosen < 0].sum()), float(chosen[chosen > 0].sum())
    return Interval(value, max(value - reach, least), min(value + reach, most))


def paired_p_value(result: Delong, first: int, second: int) -> float:
    """Two-sided p of no difference between two models' AUCs on the same patients; 1 where they are alike."""
    difference = float(result.auc[first] - result.auc[second])
    cov = result.covariance
    variance = float(cov[first, first] + cov[second, second] - 2 * cov[first, second])
    if variance <= 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return math.erfc(abs(difference) / math.sqrt(2 * variance))


def accuracy(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Share of patients on the right side of a probability of one half."""
    return float(np.mean((np.asarray(probabilities) >= 0.5) == (np.asarray(labels) == 1)))  # noqa: PLR2004 - one half


def brier(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean squared distance of the probability from what happened: 0 is perfect, 0.25 a coin's."""
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - np.asarray(labels)) ** 2))


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Mean negative log likelihood, natural logarithm: 0 is perfect, 0.693 a coin's."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), _CERTAIN, 1 - _CERTAIN)
    return float(-np.mean(np.where(np.asarray(labels) == 1, np.log(p), np.log1p(-p))))


def roc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The ROC curve: false and true positive rates, float64 [points] each, from (0, 0) to (1, 1).

    Raises:
        ValueError: only one class.
    """
    truth = np.asarray(labels) == 1
    values = np.asarray(scores, dtype=np.float64)
    if truth.all() or not truth.any():
        raise ValueError("a ROC curve needs both classes")
    order = np.argsort(-values, kind="stable")
    # Patients with one score are told apart by no threshold: a point only where the score changes.
    last_of_score = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    true_positives = np.cumsum(truth[order])[last_of_score]
    false_positives = last_of_score + 1 - true_positives
    return (
        np.append(0.0, false_positives / (~truth).sum()),
        np.append(0.0, true_positives / truth.sum()),
    )


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
