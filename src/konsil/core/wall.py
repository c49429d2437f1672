"""What crosses the wall between the training process and its node: words here, arrays as descriptors.

Frames on the Unix socket: 4 bytes length (big-endian), then msgpack; a file descriptor may ride along
(SCM_RIGHTS) with the first byte of a frame. Arrays are safetensors layouts (header, then data) in a
sealed memory file.
"""

from __future__ import annotations

import msgspec

from konsil.core.rules.calls import Call, Contribution
from konsil.core.rules.settings import StudySettings
from konsil.core.rules.state import RoundRecord

WALL_VERSION = 1
MAX_WORDS_BYTES = 64 * 1024 * 1024
"""The largest frame: a whole ledger state for the command line; the peer is a process of the same host."""


class _Word(msgspec.Struct, frozen=True, tag_field="word"):
    """Common shape; the tag names the word."""


# --- training process -> node --------------------------------------------------------------------


class Join(_Word, frozen=True, tag="join"):
    """First on a training connection. ``header``: safetensors header of the learner's parameters (what
    travels, i.e. without what stays local). The descriptor holds the initial parameters, which the
    proposer's node uses if the study has none yet. ``resume``: the round this process already holds, or -1."""

    version: int
    study: str
    header: bytes
    pid: int
    resume: int = -1


class Progress(_Word, frozen=True, tag="progress"):
    """How far the open round's training is: 0 to 1."""

    round: int
    progress: float


class Update(_Word, frozen=True, tag="update"):
    """The member's update for a round; the descriptor holds it, sealed. ``base``: digest trained from."""

    round: int
    base: str
    examples: int


class Scored(_Word, frozen=True, tag="scored"):
    """Scores of an accepted merge on the member's own validation data."""

    round: int
    examples: int
    loss: float | None = None
    metrics: dict[str, float] = {}


class Finished(_Word, frozen=True, tag="finished"):
    """Training has finished; what the member keeps contributing."""

    contribution: Contribution = "inactive"


class Goodbye(_Word, frozen=True, tag="goodbye"):
    """Training stops without finishing; it may join again."""


# --- node -> training process --------------------------------------------------------------------


class Joined(_Word, frozen=True, tag="joined"):
    """Answer to ``Join``: the study's settings and the model to start from (descriptor: sealed, read only).

    ``round``: the round to train for, i.e. the accepted one plus 1; ``digest``: of the parameters.
    """

    member: str
    settings: StudySettings
    round: int
    digest: str


class Merged(_Word, frozen=True, tag="merged"):
    """A round was accepted; the descriptor holds the merge. ``round``: the accepted one."""

    round: int
    digest: str
    record: RoundRecord
    settings: StudySettings
    ended: str = ""


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


class AskModel(_Word, frozen=True, tag="ask_model"):
    """A study's last accepted merge (or initial parameters). Answer: ``ToldModel`` with a descriptor."""

    study: str


class AskPropose(_Word, frozen=True, tag="ask_propose"):
    """Propose a study; the descriptor, if any, holds its initial parameters. Answer: ``Noted``."""

    settings: StudySettings


class AskAdmit(_Word, frozen=True, tag="ask_admit"):
    """Keep this card, serve it to peers, and open the vote to admit its member. Answer: ``Noted``."""

    card: bytes


class ToldState(_Word, frozen=True, tag="told_state"):
    """The state as canonical JSON."""

    height: int
    digest: str
    state: bytes


class ToldModel(_Word, frozen=True, tag="told_model"):
    """The descriptor holds the parameters."""

    study: str
    round: int
    digest: str


class PeerStatus(msgspec.Struct, frozen=True):
    """A peer as this node sees it. ``rtt_ms``: last measured round trip; ``via``: how it is connected."""

    member: str
    connected: bool
    via: str = ""
    rtt_ms: float = 0.0
    problem: str = ""


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
    """A node about itself. ``bytes_out``/``bytes_in``: over all peer connections since its start."""

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


ToNode = (
    Join | Progress | Update | Scored | Finished | Goodbye
    | AskState | AskCall | AskNode | AskModel | AskPropose | AskAdmit
)  # fmt: skip
FromNode = Joined | Merged | Waiting | Failed | Noted | ToldState | ToldModel | ToldNode
