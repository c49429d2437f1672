"""What a member can ask of the contract. Each call is a small canonical message.

A call is signed together with the swarm's digest, the caller and the caller's sequence number,
so it cannot be replayed, nor moved to another swarm.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from konsil.core.rules.settings import StudySettings, SwarmSettings

MAX_CALL_BYTES = 64 * 1024
"""A call is a few hundred bytes; a study's settings for 200 members stay far below this."""

Contribution = Literal["snapshot", "active", "inactive"]
"""What a finished member keeps contributing: its last update, the merge, or nothing."""


class MemberRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the ledger knows of a member: identities and digests, taken from its card.

    ``ledger_key``: Ed25519 public key, 32 bytes as hex. ``bundle`` and ``card``: BLAKE3 digests as hex.
    ``addresses``: "host:port" where its node listens; empty for a member that can only dial out.
    ``witness``: it helps to keep the ledger and has a vote, and takes part in no study.
    """

    name: str
    spiffe_id: str
    ledger_key: str
    bundle: str
    card: str
    addresses: tuple[str, ...] = ()
    witness: bool = False


class _Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="call"):
    """Common shape: frozen, no unknown fields, the tag names the call."""


# --- members -------------------------------------------------------------------------------------


class ProposeAdmit(_Call, frozen=True, tag="propose_admit"):
    """Open a vote to admit a member. The proposer's vote is yes."""

    member: MemberRecord


class ProposeRemove(_Call, frozen=True, tag="propose_remove"):
    """Open a vote to remove a member, who has no vote in it."""

    member: str
    reason: str = ""


class ProposeSwarmSettings(_Call, frozen=True, tag="propose_swarm_settings"):
    """Open a vote to change the swarm's settings."""

    settings: SwarmSettings


class ProposeStudySettings(_Call, frozen=True, tag="propose_study_settings"):
    """Open a vote among a study's participants to change its settings from the next round on."""

    settings: StudySettings


class Vote(_Call, frozen=True, tag="vote"):
    """One member's vote on a proposal. A second vote of the same member is refused."""

    proposal: int
    yes: bool


class Announce(_Call, frozen=True, tag="announce"):
    """A member changes the addresses at which its node listens."""

    addresses: tuple[str, ...]


class Validate(_Call, frozen=True, tag="validate"):
    """The caller's node helps to decide on the ledger's blocks from now on (``on``), or no longer does.

    A newcomer says so once its node has the whole history: one that is not there yet would count as failed.
    """

    on: bool


class Renew(_Call, frozen=True, tag="renew"):
    """A member's trust bundle has changed: the digest of the new one, and of its new card that holds it.

    Name, SPIFFE ID and ledger key stay. Peers fetch the card, and trust the new bundle in place of the old.
    """

    bundle: str
    card: str


# --- studies -------------------------------------------------------------------------------------


class ProposeStudy(_Call, frozen=True, tag="propose_study"):
    """Put a study before the members. The proposer agrees by proposing."""

    settings: StudySettings


class Agree(_Call, frozen=True, tag="agree"):
    """Take part in a study under the settings that have this digest."""

    study: str
    settings: str


class Initialise(_Call, frozen=True, tag="initialise"):
    """The proposer's initial parameters: round 0, from which all start.

    ``schema``: BLAKE3 of the safetensors header; ``digest``: of the parameters; ``data_bytes``: of the
    data section, from which the number of chunks follows.
    """

    study: str
    schema: str
    digest: str
    data_bytes: int


class Enter(_Call, frozen=True, tag="enter"):
    """A member's training has loaded the current model and is ready to train."""

    study: str


class Leave(_Call, frozen=True, tag="leave"):
    """A member's training has stopped without finishing; it may enter again."""

    study: str


# --- rounds --------------------------------------------------------------------------------------


class Commit(_Call, frozen=True, tag="commit"):
    """A member's update for the open round: its digest and how many examples it was trained on.

    ``base``: digest of the accepted merge that the training started from. ``start``: in a study with an outer
    optimiser, digest of that optimiser's state after that merge; else empty.
    """

    study: str
    round: int
    base: str
    digest: str
    examples: int
    start: str = ""


class Alive(_Call, frozen=True, tag="alive"):
    """A member that is still training says so before its silence would end. ``progress``: 0 to 1."""

    study: str
    round: int
    progress: float = 0.0


class Publish(_Call, frozen=True, tag="publish"):
    """A leader's merged part. ``digest``: group digest of the part's leaves. ``gram``: digest of the
    summed Gram matrix where the rule mixes, else empty.
    """

    study: str
    round: int
    attempt: int
    part: int
    digest: str
    gram: str = ""


class Accept(_Call, frozen=True, tag="accept"):
    """A member of the roster holds the whole merge, has audited its share of it, and can serve it.

    ``digest``: root over the published parts. The round is accepted when all of the roster say so; once
    its deadline has passed, when a majority does. So an accepted merge survives the loss of any minority.
    """

    study: str
    round: int
    attempt: int
    digest: str


class Report(_Call, frozen=True, tag="report"):
    """Members of the roster whose update the caller cannot get."""

    study: str
    round: int
    attempt: int
    unreachable: tuple[str, ...]


class Tick(_Call, frozen=True, tag="tick"):
    """A deadline has passed: let the contract draw the consequences. Anyone may say so."""

    study: str


class Dispute(_Call, frozen=True, tag="dispute"):
    """The caller recomputed a chunk of a published part and got another leaf than the part's leader.

    Only for the open round while it is merging: while a dispute is open the round cannot be accepted.
    """

    study: str
    round: int
    attempt: int
    part: int
    chunk: int


class Verdict(_Call, frozen=True, tag="verdict"):
    """What a member of the roster found on recomputing a disputed chunk."""

    study: str
    round: int
    attempt: int
    part: int
    chunk: int
    wrong: bool


class Score(_Call, frozen=True, tag="score"):
    """A member's scores of an accepted merge on its own validation data."""

    study: str
    round: int
    examples: int
    loss: float | None = None
    metrics: dict[str, float] = {}


class Finish(_Call, frozen=True, tag="finish"):
    """A member has finished training; ``contribution`` is what it keeps contributing."""

    study: str
    contribution: Contribution = "inactive"


Call = (
    ProposeAdmit | ProposeRemove | ProposeSwarmSettings | ProposeStudySettings | Vote | Announce
    | Validate | Renew | ProposeStudy | Agree | Initialise | Enter | Leave
    | Commit | Alive | Publish | Accept | Report | Tick | Dispute | Verdict | Score | Finish
)  # fmt: skip
