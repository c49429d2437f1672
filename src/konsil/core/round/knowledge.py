"""What a node knows of its own part in a study, and what of it it writes down; all else is on the ledger."""

from __future__ import annotations

import msgspec

from konsil.core.round.events import (
    Advanced,
    Effect,
    Offered,
    PartMerged,
    Probe,
    Recompute,
    Suspected,
    UpdateReady,
)
from konsil.core.rules.calls import Contribution, Score


class Retry(msgspec.Struct, frozen=True):
    """When to try a failed effect again, and how often it has failed."""

    at_s: float
    failures: int


NOBODY_MISSED: tuple[int, frozenset[str]] = (0, frozenset())


class NodeRound(msgspec.Struct, frozen=True):
    """What a node knows of its own part in a study; the rest stands on the ledger.

    ``greeted``: the training process got its first model since it joined. ``delivered``: digest of the
    model that the training process has. ``waiting``: the training process waits for a model. ``held``:
    digests of the models that this node has, the base and the merge that is not accepted yet.
    ``completed``: round, attempt and digest of the last merge that was completed and audited here.
    ``unreachable``: of which round, and whose update could not be had there. ``probed``: members whose
    update is well though another reported it. ``outer``: the outer state after the accepted merge, in a
    study with an outer optimiser; ``trains_from``: the one that the model of the training process is of,
    "" if that is not known. ``said``: digest of the update that the ledger may have heard of. ``doing``:
    effects under way, in the order in which they began.
    """

    me: str
    study: str
    attached: bool = False
    greeted: bool = False
    waiting: bool = False
    delivered: str = ""
    leaving: bool = False
    offered: Offered | None = None
    held: frozenset[str] = frozenset()
    completed: tuple[int, int, str] = (0, 0, "")
    outer: Advanced | None = None
    trains_from: str = ""
    update: UpdateReady | None = None
    said: str = ""
    progress: float = 0.0
    finish: Contribution | None = None
    scores: tuple[Score, ...] = ()
    merged: dict[tuple[int, int, int], PartMerged] = {}
    unreachable: tuple[int, frozenset[str]] = NOBODY_MISSED
    probed: frozenset[Probe] = frozenset()
    suspects: tuple[Suspected, ...] = ()
    findings: dict[Recompute, bool] = {}
    doing: tuple[Effect, ...] = ()
    retries: dict[Effect, Retry] = {}


NEVER_FAILED = Retry(0.0, 0)


class Promise(msgspec.Struct, frozen=True):
    """A digest that this node stands by. One of a kind in a round: another digest is never promised.

    ``digest``: "" for one that may have been promised and is not known any more.
    """

    study: str
    round: int
    kind: str
    digest: str


class Farewell(msgspec.Struct, frozen=True):
    """What a training process said when it finished, which nobody says again: it goes into the journal.

    ``update``: its last one, to be contributed on as a snapshot.
    """

    contribution: Contribution
    update: UpdateReady | None = None
