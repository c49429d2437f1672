"""What the numbers of a model mean: which column and which class each stands for.

Neither travels, and both are nothing but an order: a member with the same columns in another order, or with
other classes, has parameters of the right names and shapes that mean something else. So their digests go into
the schema.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from konsil.core.digest import bytes_digest
from konsil.core.parameters import CLASSES, COLUMNS, mark
from konsil.learners.protocols import Array
from konsil.learners.sklearn.columns import Columns

_NOTE = "_konsil_columns"
"""Where `prepare` notes on a model how many columns its rows have, or which."""


def note_columns(model: Any, columns: Columns) -> None:
    """Remember what `prepare` was told, as long as the model lives."""
    setattr(model, _NOTE, columns)


def noted_columns(model: Any) -> Columns | None:
    """What `prepare` was told; None for a model that it has not seen."""
    columns: Columns | None = getattr(model, _NOTE, None)
    return columns


def marks_of(model: Any) -> dict[str, Array]:
    """The empty arrays, by name, that stand for a model's columns, if `prepare` was told their names, and for
    the classes of a classifier.
    """
    names = []
    columns = noted_columns(model)
    if isinstance(columns, tuple):
        names.append(mark(COLUMNS, bytes_digest(json.dumps(columns).encode(), "columns")))
    if hasattr(model, "classes_"):
        labels = [_label(value) for value in np.asarray(model.classes_).ravel().tolist()]
        names.append(mark(CLASSES, bytes_digest(json.dumps(labels).encode(), "classes")))
    return {name: np.zeros(0, np.float32) for name in names}


def _label(value: Any) -> str:
    """A class in words: 1, 1.0 and True are one, as they are for scikit-learn, and "1" is another."""
    if isinstance(value, bool | int | float) and value == value // 1:
        return repr(int(value))
    return repr(value)
