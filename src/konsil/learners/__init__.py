"""Learners: thin adapters that let any framework's model give and take named arrays.

``base`` has the protocol and finds the adapter; every other file is one framework, imported only when used.
"""

from __future__ import annotations

from konsil.learners.base import Learner, LocalTraining, Shared, learner_for, learner_in, register
from konsil.learners.scores import Scores, evaluated

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
