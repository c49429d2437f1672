"""Learners: thin adapters that let any framework's model give and take named arrays.

``protocols`` says what a learner is, ``base`` finds the adapter for a model, ``shared`` what of it
travels. A framework has a file or folder of its own, imported only when used.
"""

from __future__ import annotations

from konsil.learners.base import learner_for, learner_in, register
from konsil.learners.protocols import Learner, LocalTraining
from konsil.learners.scores import Scores, evaluated
from konsil.learners.shared import Shared

__all__ = [
    "Learner",
    "LocalTraining",
    "Scores",
    "Shared",
    "evaluated",
    "learner_for",
    "learner_in",
    "register",
]
