"""What a node can be told, and what it can be asked to do: the words of the round machine."""

from __future__ import annotations

from dataclasses import dataclass

from konsil.core.rules.calls import Call, Contribution, Score

# --- effects: what the shell is to do ------------------------------------------------------------


@dataclass(frozen=True)
class Submit:
    """Put a call on the ledger; a commit or a published part goes into the journal first."""

    call: Call

    def __hash__(self) -> int:
        """By the kind of call: a score holds a dict of metrics, which has no hash of its own."""
        return hash(type(self.call))


@dataclass(frozen=True)
class Fetch:
    """Get the merge (or the initial parameters) behind this digest.

    ``attempt``: of the open round whose merge it is to be, which is completed from the roster's parts and
    audited even where a model with its digest is here already; 0 for what was accepted.
    """

    round: int
    digest: str
    attempt: int = 0


@dataclass(frozen=True)
class Lead:
    """Merge a part of the open round."""

    round: int
    attempt: int
    part: int


@dataclass(frozen=True)
class Recompute:
    """Recompute a disputed chunk of the open round."""

    round: int
    attempt: int
    part: int
    chunk: int


@dataclass(frozen=True)
class Probe:
    """See for oneself whether a member's update, which another reported, can be had and is finite."""

    round: int
    attempt: int
    member: str


@dataclass(frozen=True)
class Advance:
    """Get the outer state after an accepted merge: compute it or, with ``start``, get the one that a majority
    trains from, since this node's own is another.
    """

    round: int
    digest: str
    start: str = ""


@dataclass(frozen=True)
class Deliver:
    """Hand the held model to the training process, which waits for it. ``start``: the outer state that it is
    of, where there is an outer optimiser.
    """

    round: int
    digest: str
    start: str = ""


@dataclass(frozen=True)
class Cancel:
    """Stop an effect that is no longer wanted."""

    effect: Lead | Fetch | Recompute | Probe | Advance


Effect = Submit | Fetch | Lead | Recompute | Probe | Advance | Deliver | Cancel


# --- events: what happened -----------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """The ledger moved, or a wake-up time came."""


@dataclass(frozen=True)
class Attached:
    """A training process has joined. ``holds``: digest of the model that it already has, or ""."""

    holds: str = ""


@dataclass(frozen=True)
class Offered:
    """The proposer's initial parameters are at hand."""

    schema: str
    digest: str
    data_bytes: int


@dataclass(frozen=True)
class Detached:
    """The training process is gone. ``goodbye``: it said so itself."""

    goodbye: bool


@dataclass(frozen=True)
class UpdateReady:
    """The training process handed over its update; it now waits for the merge."""

    round: int
    base: str
    digest: str
    examples: int


@dataclass(frozen=True)
class ProgressMade:
    """How far the training of the open round is, 0 to 1."""

    progress: float


@dataclass(frozen=True)
class FinishWanted:
    """The training process has finished."""

    contribution: Contribution


@dataclass(frozen=True)
class ScoreReady:
    """The training process scored a merge."""

    score: Score


@dataclass(frozen=True)
class Held:
    """A model is here, checked against its digest."""

    digest: str


@dataclass(frozen=True)
class Advanced:
    """The outer state after an accepted merge is here. ``digest``: of the merge; ``start``: of the state;
    ``model``: of the model in it, from which training goes on.
    """

    digest: str
    start: str
    model: str


@dataclass(frozen=True)
class PartMerged:
    """A part that this node leads is merged."""

    round: int
    attempt: int
    part: int
    digest: str
    gram: str


@dataclass(frozen=True)
class Suspected:
    """An audited chunk is not what its commits give."""

    round: int
    attempt: int
    part: int
    chunk: int


@dataclass(frozen=True)
class Found:
    """A disputed chunk was recomputed."""

    at: Recompute
    wrong: bool


@dataclass(frozen=True)
class Done:
    """An effect was carried out."""

    effect: Effect


@dataclass(frozen=True)
class Failed:
    """An effect failed and is to be tried again. ``wait_s``: not before this, if it is known.
    ``unreachable``: members of the roster whose update could not be had.
    """

    effect: Effect
    wait_s: float | None = None
    unreachable: tuple[str, ...] = ()


Event = (
    Looked | Attached | Offered | Detached | UpdateReady | ProgressMade | FinishWanted | ScoreReady
    | Held | Advanced | PartMerged | Suspected | Found | Done | Failed
)  # fmt: skip
