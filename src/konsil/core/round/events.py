"""What a node can be told, and what it can be asked to do: the words of the round machine."""

from __future__ import annotations

import msgspec

from konsil.core.rules.calls import Call, Contribution, Score

# --- effects: what the shell is to do ------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True):
    """Put a call on the ledger; a published part goes into the journal first."""

    call: Call

    def __hash__(self) -> int:
        """By the kind of call: a score holds a dict of metrics, which has no hash of its own."""
        return hash(type(self.call))


class Fetch(msgspec.Struct, frozen=True):
    """Get the merge (or the initial parameters) behind this digest.

    ``attempt``: of the open round whose merge it is to be, which is completed from the roster's parts and
    audited even where a model with its digest is here already; 0 for what was accepted.
    """

    round: int
    digest: str
    attempt: int = 0


class Lead(msgspec.Struct, frozen=True):
    """Merge a part of the open round."""

    round: int
    attempt: int
    part: int


class Recompute(msgspec.Struct, frozen=True):
    """Recompute a disputed chunk of the open round."""

    round: int
    attempt: int
    part: int
    chunk: int


class Probe(msgspec.Struct, frozen=True):
    """See for oneself whether a member's update, which another reported, can be had and is finite."""

    round: int
    attempt: int
    member: str


class Advance(msgspec.Struct, frozen=True):
    """Get the outer state after an accepted merge: compute it or, with ``start``, get the one that a majority
    trains from, since this node's own is another.
    """

    round: int
    digest: str
    start: str = ""


class Deliver(msgspec.Struct, frozen=True):
    """Hand the held model to the training process, which waits for it. ``start``: the outer state that it is
    of, where there is an outer optimiser.
    """

    round: int
    digest: str
    start: str = ""


class Cancel(msgspec.Struct, frozen=True):
    """Stop an effect that is no longer wanted."""

    effect: Lead | Fetch | Recompute | Probe | Advance


Effect = Submit | Fetch | Lead | Recompute | Probe | Advance | Deliver | Cancel


# --- events: what happened -----------------------------------------------------------------------


class Looked(msgspec.Struct, frozen=True):
    """The ledger moved, or a wake-up time came."""


class Attached(msgspec.Struct, frozen=True):
    """A training process has joined. ``holds``: digest of the model that it already has, or ""."""

    holds: str = ""


class Offered(msgspec.Struct, frozen=True):
    """The proposer's initial parameters are at hand."""

    schema: str
    digest: str
    data_bytes: int


class Detached(msgspec.Struct, frozen=True):
    """The training process is gone. ``goodbye``: it said so itself."""

    goodbye: bool


class UpdateReady(msgspec.Struct, frozen=True):
    """The training process handed over its update; it now waits for the merge."""

    round: int
    base: str
    digest: str
    examples: int


class ProgressMade(msgspec.Struct, frozen=True):
    """How far the training of the open round is, 0 to 1."""

    progress: float


class FinishWanted(msgspec.Struct, frozen=True):
    """The training process has finished."""

    contribution: Contribution


class ScoreReady(msgspec.Struct, frozen=True):
    """The training process scored a merge."""

    score: Score


class Held(msgspec.Struct, frozen=True):
    """A model is here, checked against its digest."""

    digest: str


class Advanced(msgspec.Struct, frozen=True):
    """The outer state after an accepted merge is here. ``digest``: of the merge; ``start``: of the state;
    ``model``: of the model in it, from which training goes on.
    """

    digest: str
    start: str
    model: str


class PartMerged(msgspec.Struct, frozen=True):
    """A part that this node leads is merged."""

    round: int
    attempt: int
    part: int
    digest: str
    gram: str


class Suspected(msgspec.Struct, frozen=True):
    """An audited chunk is not what its commits give."""

    round: int
    attempt: int
    part: int
    chunk: int


class Found(msgspec.Struct, frozen=True):
    """A disputed chunk was recomputed."""

    at: Recompute
    wrong: bool


class Done(msgspec.Struct, frozen=True):
    """An effect was carried out."""

    effect: Effect


class Failed(msgspec.Struct, frozen=True):
    """An effect failed and is to be tried again. ``wait_s``: not before this, if it is known.
    ``unreachable``: members of the roster whose update could not be had. ``refused``: the contract said no,
    so that the call is surely not on the ledger.
    """

    effect: Effect
    wait_s: float | None = None
    refused: bool = False
    unreachable: tuple[str, ...] = ()


Event = (
    Looked | Attached | Offered | Detached | UpdateReady | ProgressMade | FinishWanted | ScoreReady
    | Held | Advanced | PartMerged | Suspected | Found | Done | Failed
)  # fmt: skip
