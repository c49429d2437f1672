"""Konsil: hospitals train one model together; no record leaves a hospital, no server owns the model.

The three lines that a training script needs::

    with konsil.join("aml", model) as swarm:
        while not swarm.finished:
            train_one_epoch(model, data)
            swarm.epoch(examples=len(data))

Names are imported when they are first used: ``import konsil`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from konsil.errors import (
        ConfigError,
        DigestMismatch,
        FrameError,
        IdentityError,
        JournalCorrupt,
        KonsilError,
        LedgerError,
        LedgerUnreachable,
        MergeMismatch,
        NodeBusy,
        NodeError,
        NodeUnreachable,
        NonFinite,
        ParametersError,
        PeerRefused,
        PeerUnreachable,
        ProxyError,
        Refused,
        SchemaMismatch,
        StudyError,
        TransportError,
    )
    from konsil.learners.base import learner_for, register
    from konsil.learners.fine_tune import FineTuned, fine_tune
    from konsil.learners.protocols import Learner
    from konsil.learners.sklearn import prepare
    from konsil.session.accepted import AcceptedRound
    from konsil.session.joining import join
    from konsil.session.swarm import Swarm
    from konsil.simulation.member import Member, Work
    from konsil.simulation.swarm import simulate

__all__ = [
    "AcceptedRound",
    "ConfigError",
    "DigestMismatch",
    "FineTuned",
    "FrameError",
    "IdentityError",
    "JournalCorrupt",
    "KonsilError",
    "Learner",
    "LedgerError",
    "LedgerUnreachable",
    "Member",
    "MergeMismatch",
    "NodeBusy",
    "NodeError",
    "NodeUnreachable",
    "NonFinite",
    "ParametersError",
    "PeerRefused",
    "PeerUnreachable",
    "ProxyError",
    "Refused",
    "SchemaMismatch",
    "StudyError",
    "Swarm",
    "TransportError",
    "Work",
    "fine_tune",
    "join",
    "learner_for",
    "prepare",
    "register",
    "simulate",
]

_ELSEWHERE = {
    "AcceptedRound": "konsil.session.accepted",
    "FineTuned": "konsil.learners.fine_tune",
    "Learner": "konsil.learners.protocols",
    "Member": "konsil.simulation.member",
    "Swarm": "konsil.session.swarm",
    "Work": "konsil.simulation.member",
    "fine_tune": "konsil.learners.fine_tune",
    "join": "konsil.session.joining",
    "learner_for": "konsil.learners.base",
    "prepare": "konsil.learners.sklearn",
    "register": "konsil.learners.base",
    "simulate": "konsil.simulation.swarm",
}


def __getattr__(name: str) -> object:
    """A public name, imported now."""
    if name not in __all__:
        raise AttributeError(f"module 'konsil' has no attribute {name!r}")
    value: object = getattr(import_module(_ELSEWHERE.get(name, "konsil.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__]
