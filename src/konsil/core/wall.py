"""What crosses the wall between the training process and its node: words here, arrays as descriptors.

Frames on the Unix socket: 4 bytes length (big-endian), then msgpack; a file descriptor may ride along
(SCM_RIGHTS) with the first byte of a frame. Arrays are safetensors layouts (header, then data) in a
sealed memory file.

A training connection, S being the session and N the node (``+fd``: a descriptor rides along):

    S Knock                 who is there, for which study
    N Terms                 its settings, and whether the session's parameters are wanted as the first model
    S Join [+fd]            the schema, and the model the session already holds
    N Waiting ...           any number of times before an answer that takes long
    N Joined [+fd]          the round to train for; +fd unless the session holds that model already
    S Progress ...          at most once a second; never answered
    S Update +fd            then N: Waiting ..., and Merged +fd of the last accepted round, >= Update.round
    S Scored                then N: Noted
    S Wanted                then N: Final [+fd]: the study's final model with its card, of a study that is
                            over once nothing can change the choice; without one, what it would be now
    S Finished or Goodbye   then N: Noted, and both close

Instead of an answer N may say Failed; the connection stays open unless the session's bytes broke the
format. Unasked, N may say Merged +fd when the round that the session trains for was accepted without it:
once, and again only after a Progress or Update has named the following round, so that descriptors never
pile up in a socket that nobody reads.

When the connection breaks, the session knocks again and joins with the round and digest that it holds. A
node whose ledger is behind that round answers when it has caught up. If the open round is still the
session's, it hands over its update for it again, the same bytes. The node takes a repeated Update, Scored or
Finished as the first: it answers it again.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from konsil.core.rules.calls import Call, Contribution
from konsil.core.rules.settings import StudySettings
from konsil.core.rules.state import RoundRecord

WALL_VERSION = 2
MAX_WORDS_BYTES = 64 * 1024 * 1024
"""The largest frame; the peer is a process of the same host."""


class _Word(msgspec.Struct, frozen=True, tag_field="word"):
    """Common shape; the tag names the word."""


# --- training process -> node --------------------------------------------------------------------


class Knock(_Word, frozen=True, tag="knock"):
    """First on a training connection. Answer: ``Terms``. ``version``: ``WALL_VERSION``; ``pid``: of the
    training process.
    """

    version: int
    study: str
    pid: int


class Join(_Word, frozen=True, tag="join"):
    """Begin, or go on after the connection broke. Answer: ``Joined``.

    ``header``: safetensors header of the learner's parameters (what travels, i.e. without what stays
    local). ``round``, ``digest``: the accepted round and the model that this process holds; -1 and "" if
    none. The descriptor holds the initial parameters, if ``Terms`` wanted them.
    """

    header: bytes
    round: int = -1
    digest: str = ""


class Progress(_Word, frozen=True, tag="progress"):
    """How far the open round's training is: 0 to 1."""

    round: int
    progress: float


class Update(_Word, frozen=True, tag="update"):
    """The member's update for a round; the descriptor holds it, sealed. Answer: ``Merged``.

    ``base``: digest of the model that was trained from; ``examples``: trained on since then.
    """

    round: int
    base: str
    examples: int


class Scored(_Word, frozen=True, tag="scored"):
    """Scores of an accepted merge on the member's own validation data. Answer: ``Noted``."""

    round: int
    examples: int
    loss: float | None = None
    metrics: dict[str, float] = {}


class Wanted(_Word, frozen=True, tag="wanted"):
    """The study's final model is wanted. Answer: ``Final``.

    ``wait_s``: how long the node may wait for the choice to be settled; it takes at most a few seconds.
    """

    wait_s: float = 0.0


class Finished(_Word, frozen=True, tag="finished"):
    """Training has finished; what the member keeps contributing. Answer: ``Noted``."""

    contribution: Contribution = "inactive"


class Goodbye(_Word, frozen=True, tag="goodbye"):
    """Training stops without finishing; it may join again. Answer: ``Noted``."""


# --- node -> training process --------------------------------------------------------------------


class Terms(_Word, frozen=True, tag="terms"):
    """Answer to ``Knock``. ``wanted``: the study has no initial parameters yet and this node is to give
    them, so ``Join`` brings them along. ``swarm``: the genesis digest.
    """

    member: str
    settings: StudySettings
    wanted: bool = False
    swarm: str = ""


class Joined(_Word, frozen=True, tag="joined"):
    """Answer to ``Join``: where the study is. The descriptor (sealed) holds the model of the accepted round;
    absent where ``Join`` named that round and digest.

    ``round``: the round to train for, i.e. the accepted one plus 1; ``digest``: of the accepted model.
    ``record``: of the accepted round; None before round 1 was accepted. ``ended``: why the study is over.
    ``interval``: how many times the set interval to train before the next update. ``before``: the record of
    the round before the accepted one, with the scores that have come since. ``failed``: the study has ended,
    and not as it should.
    """

    settings: StudySettings
    round: int
    digest: str
    record: RoundRecord | None = None
    ended: str = ""
    interval: int = 1
    before: RoundRecord | None = None
    failed: bool = False


class Merged(_Word, frozen=True, tag="merged"):
    """A round was accepted; the descriptor holds the merge. ``round``: the accepted one.

    ``ended``: why the study is over, empty while it goes on. ``interval``, ``before``, ``failed``: as in
    ``Joined``.
    """

    round: int
    digest: str
    record: RoundRecord
    settings: StudySettings
    ended: str = ""
    interval: int = 1
    before: RoundRecord | None = None
    failed: bool = False


class Final(_Word, frozen=True, tag="final"):
    """Answer to ``Wanted``. The descriptor holds the model; it comes once the choice is ``settled``, or while
    the study goes on. ``card``: as JSON, see ``konsil.core.model_card``. ``until_s``: unix time at which the
    choice is settled at the latest.
    """

    round: int
    digest: str
    settled: bool
    card: bytes = b""
    until_s: float = 0.0


class Waiting(_Word, frozen=True, tag="waiting"):
    """What the node is waiting for, in words, for progress displays. ``until_s``: ledger time."""

    round: int
    stage: str
    missing: tuple[str, ...]
    until_s: int


class Failed(_Word, frozen=True, tag="failed"):
    """The request cannot be served: an error of this kind is raised in the asking process."""

    kind: str
    code: str
    what: str
    safe: str = ""
    do: str = ""


class Noted(_Word, frozen=True, tag="noted"):
    """Understood and, where it matters, on the ledger."""

    height: int = 0


# --- command line -> node (on the control socket) ------------------------------------------------


class AskState(_Word, frozen=True, tag="ask_state"):
    """The contract's state; waits up to ``wait_s`` for a height above ``after``. Answer: ``ToldState``."""

    after: int = -1
    wait_s: float = 0.0


class AskCall(_Word, frozen=True, tag="ask_call"):
    """Sign this call with the member's ledger key and put it on the ledger. Answer: ``Noted``."""

    call: Call


class AskNode(_Word, frozen=True, tag="ask_node"):
    """What the node is doing. Answer: ``ToldNode``."""


class AskPeers(_Word, frozen=True, tag="ask_peers"):
    """Ask every peer for its version, clock and height now. Answer: ``ToldPeers``."""


class AskModel(_Word, frozen=True, tag="ask_model"):
    """A study's final model, or what it would be now. Answer: ``ToldModel`` with a descriptor.

    ``round``: the merge of this round instead, if this node still has it; -1 for the last one.
    ``wait_s``: how long to wait for the choice to be settled; a few seconds at most.
    """

    study: str
    round: int = 0
    wait_s: float = 0.0


class AskPropose(_Word, frozen=True, tag="ask_propose"):
    """Propose a study; the descriptor, if any, holds its initial parameters. Answer: ``Noted``."""

    settings: StudySettings


class AskAdmit(_Word, frozen=True, tag="ask_admit"):
    """Keep this card, serve it to peers, and open the vote to admit its member. Answer: ``Noted``."""

    card: bytes


class AskTrust(_Word, frozen=True, tag="ask_trust"):
    """Know a member by this newer card too, beside the one on this copy of the ledger. Answer: ``Noted``."""

    card: bytes


class AskRoot(_Word, frozen=True, tag="ask_root"):
    """Take the next step of a change of the built-in authority's root. Answer: ``Noted``."""

    step: Literal["prepare", "activate", "retire"]


class AskMend(_Word, frozen=True, tag="ask_mend"):
    """Go on with a study whose journal at this node is damaged. Answer: ``ToldMended``."""

    study: str


class ToldState(_Word, frozen=True, tag="told_state"):
    """The state as canonical JSON; ``state`` is empty where a descriptor that comes along holds it."""

    height: int
    digest: str
    state: bytes


class ToldModel(_Word, frozen=True, tag="told_model"):
    """The descriptor holds the parameters. ``card``: as in ``Final``."""

    study: str
    round: int
    digest: str
    card: bytes = b""


class ToldMended(_Word, frozen=True, tag="told_mended"):
    """``kept``: how many notes the damaged journal still had; ``aside``: where it is now, empty if what is
    there now is whole; ``unknown``: parts of the open attempt that this node does not publish, since it may
    have promised something else.
    """

    study: str
    kept: int
    aside: str
    unknown: int


class PeerStatus(msgspec.Struct, frozen=True):
    """A peer as this node sees it. ``rtt_ms``: last measured round trip; ``via``: how it is connected."""

    member: str
    connected: bool
    via: str = ""
    rtt_ms: float = 0.0
    problem: str = ""


class PeerCheck(msgspec.Struct, frozen=True):
    """What a peer says of itself. ``clock_ahead_s``: its clock less this node's; ``problem``: why it
    gave no answer, else empty.
    """

    member: str
    version: str = ""
    clock_ahead_s: float = 0.0
    height: int = -1
    problem: str = ""


class ToldPeers(_Word, frozen=True, tag="told_peers"):
    """Every peer of the directory, in name order. ``height``: this node's own, asked first."""

    height: int
    peers: tuple[PeerCheck, ...]


class MemberProgress(msgspec.Struct, frozen=True):
    """A member's last heartbeat in a study. ``seen_s``: unix time on this node's clock."""

    member: str
    round: int
    stage: str
    progress: float
    seen_s: float


class StudyStatus(msgspec.Struct, frozen=True):
    """What this node does in a study: its own stage and the members' heartbeats."""

    study: str
    stage: str
    round: int
    members: tuple[MemberProgress, ...] = ()
    problem: str = ""


class ToldNode(_Word, frozen=True, tag="told_node"):
    """A node about itself. ``bytes_out``/``bytes_in``: over all peer connections since its start.

    ``way_out``: the proxy through which it dials, and who said so; "" where nobody did.
    """

    member: str
    version: str
    swarm: str
    genesis: str
    height: int
    clock_s: float
    svid_expires_s: float
    peers: tuple[PeerStatus, ...]
    studies: tuple[StudyStatus, ...]
    bytes_out: int
    bytes_in: int
    ledger: str
    problems: tuple[str, ...] = ()
    way_out: str = ""


ToNode = (
    Knock | Join | Progress | Update | Scored | Wanted | Finished | Goodbye
    | AskState | AskCall | AskNode | AskPeers | AskModel | AskPropose | AskMend
    | AskAdmit | AskTrust | AskRoot
)  # fmt: skip
FromNode = (
    Terms | Joined | Merged | Final | Waiting | Failed | Noted
    | ToldState | ToldModel | ToldNode | ToldPeers | ToldMended
)  # fmt: skip
