"""Fine-tuning a merged model on a member's own data, kept only where it is better on its validation data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from konsil.errors import ConfigError
from konsil.learners.base import adapted
from konsil.learners.protocols import Learner, Restoring
from konsil.learners.scores import evaluated

_ESTIMATOR = "sklearn.base.BaseEstimator"  # by its name, so that nothing is imported for others


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning came to. ``before``, ``after``: the scores of the merged and of the fine-tuned model.
    ``kept``: the model is the fine-tuned one; else it is the merged one again, bit for bit.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    kept: bool


def fine_tune(
    model: Any,
    train: Callable[[Any], object],
    evaluate: Callable[[Any], Mapping[str, Any]],
    *,
    metric: str = "loss",
    mode: Literal["min", "max"] = "min",
) -> FineTuned:
    """Fine-tune a merged model on this member's own data; keep it only if it is better here.

    Nothing is sent. Choose the validation data so that the model was never trained on it, and remember that a
    choice by them makes their score look better than it is: report the test data's.

    Args:
        model: as given to ``join``.
        train: trains the model on, in place.
        evaluate: as in ``join``: scores by name, measured on the member's own validation data; here it may
            do without ``examples``.
        metric: the score that decides.
        mode: which way it is better. Equal is not better.

    Raises:
        ConfigError: no adapter for this kind of model, or ``evaluate`` gives no such score.
    """
    if mode not in {"min", "max"}:
        raise ConfigError(
            f'`mode` is {mode!r}; it can be "min" or "max".', safe="The model is untouched.", do="Correct it."
        )
    learner = adapted(model)
    before = _scores(evaluate(model), metric)
    if not math.isfinite(before[metric]):
        raise ConfigError(
            f"The merged model's '{metric}' is {before[metric]}: nothing can be compared with that.",
            safe="The model is untouched.",
            do="See why it is not defined on your validation data.",
        )
    put_back = _put_back(model, learner)
    try:
        train(model)
        after = _scores(evaluate(model), metric)
    except BaseException:
        put_back()
        raise
    sign = 1 if mode == "max" else -1
    if sign * after[metric] > sign * before[metric]:  # never with a NaN
        return FineTuned(before, after, kept=True)
    put_back()
    return FineTuned(before, after, kept=False)


def _scores(found: Any, metric: str) -> dict[str, float]:
    scores = evaluated(found, needs_examples=False)
    if metric not in scores.named:
        raise ConfigError(
            f"`evaluate` gave no '{metric}', by which fine-tuning is judged; it gave:"
            f" {', '.join(scores.named) or 'nothing'}.",
            safe="The model is as it was merged.",
            do='Return for example {"examples": len(held_out), "loss": 0.31}.',
        )
    return ({"examples": float(scores.examples)} if scores.examples else {}) | scores.named


def _put_back(model: Any, learner: Learner) -> Callable[[], None]:
    """A function that makes the model what it is now: all of it, integers and counters included."""
    if isinstance(learner, Restoring):
        restoring, kept = learner, learner.snapshot()
        return lambda: restoring.restore(kept)
    if any(f"{kind.__module__}.{kind.__qualname__}" == _ESTIMATOR for kind in type(model).__mro__):
        return _put_back_estimator(model)
    arrays = {name: np.array(array) for name, array in learner.parameters().items()}
    return lambda: learner.load(arrays)


def _put_back_estimator(model: Any) -> Callable[[], None]:
    """As above, for an estimator and those in it: each stays the object that it is."""
    nested = [value for value in model.get_params(deep=True).values() if hasattr(value, "get_params")]
    estimators = [model, *nested]
    kept = []
    for estimator in estimators:
        memo = {id(other): other for other in estimators}
        kept.append((estimator, copy.deepcopy(vars(estimator), memo)))

    def put_back() -> None:
        for estimator, state in kept:
            vars(estimator).clear()
            vars(estimator).update(state)

    return put_back
