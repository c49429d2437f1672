"""Which adapter fits a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError
from konsil.learners.protocols import (
    Learner,
    LocalTraining,
    Steered,
)
from konsil.learners.shared import Shared

NOTHING_ASKED = LocalTraining()

_adapters: dict[str, str | Callable[[Any], Learner]] = {
    "builtins.dict": "konsil.learners.arrays:ArraysLearner",
    "catboost.core.CatBoost": "konsil.learners.sklearn:learner_of",  # it says why trees cannot be merged
    "keras.src.models.model.Model": "konsil.learners.keras:KerasLearner",
    "lightgbm.basic.Booster": "konsil.learners.sklearn:learner_of",
    "sklearn.base.BaseEstimator": "konsil.learners.sklearn:learner_of",
    "torch.nn.modules.module.Module": "konsil.learners.torch:TorchLearner",
    "xgboost.core.Booster": "konsil.learners.sklearn:learner_of",
}


def register(base: str, adapter: str | Callable[[Any], Learner]) -> None:
    """Let ``learner_for`` know another kind of model.

    Args:
        base: the full name of a class, "module.Class": models of this class or derived from it. A name,
            so that nothing is imported for those who do not use that framework.
        adapter: makes a learner of a model; or "module:name" of what does, imported when first needed.
    """
    _adapters[base] = adapter


def learner_for(
    model: Any,
    local: Sequence[str] = (),
    training: LocalTraining = NOTHING_ASKED,
) -> Shared:
    """The learner for a model: the model itself, if it is one, else the adapter for its class.

    Args:
        model: a dict of numpy arrays, a scikit-learn estimator, a PyTorch module, an object of a
            registered class, or a ``Learner``.
        local: patterns of names that stay here.
        training: what the study and the script ask of the training between merges.

    Raises:
        ConfigError: no adapter for this kind of model, or the adapter cannot use this one, or not so.
    """
    learner = adapted(model)
    if isinstance(learner, Steered):
        learner.train_with(replace(training, local=tuple(local)))
    elif training.asks:
        raise ConfigError(
            f"A model of type {type(model).__qualname__} cannot be trained with `optimizer`,"
            " `reset_optimizer`, or the study's `prox` or `scaffold`: Konsil does not reach into it.",
            safe="Nothing was sent; the model is untouched.",
            do="These need a torch.nn.Module; take another model, or propose a study without them.",
        )
    return Shared(learner, local)


def learner_in(settings: StudySettings, model: Any, training: LocalTraining) -> Shared:
    """The learner for a model in a study, whose settings say what stays local and how is trained.

    Args:
        settings: the study's.
        model: as for ``learner_for``.
        training: what the script asks; the study's part of it is filled in here.

    Raises:
        ConfigError: as ``learner_for``.
    """
    asked = replace(training, prox=settings.prox, scaffold=settings.scaffold)
    return learner_for(model, settings.local, asked)


def adapted(model: Any) -> Learner:
    """The adapter around a model, or the model itself if it is a ``Learner``.

    Raises:
        ConfigError: no adapter for this kind of model, or the adapter cannot use this one.
    """
    for kind in type(model).__mro__:
        adapter = _adapters.get(f"{kind.__module__}.{kind.__qualname__}")
        if isinstance(adapter, str):
            module, _, name = adapter.partition(":")
            adapter = getattr(import_module(module), name)
        if adapter is not None:
            return adapter(model)
    if isinstance(model, Learner):
        return model
    raise ConfigError(
        f"No learner for a model of type {type(model).__module__}.{type(model).__qualname__}.",
        safe="Nothing was sent; the model is untouched.",
        do="Pass a dict of numpy arrays, a scikit-learn estimator, a torch.nn.Module, or an object with"
        " `parameters()` and `load(arrays)` as konsil.learners.Learner has them.",
    )
