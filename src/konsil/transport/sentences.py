"""What goes wrong between two nodes, in the same words whichever transport says it."""

from __future__ import annotations

from konsil.errors import FrameError, IdentityError, KonsilError, PeerRefused, PeerUnreachable
from konsil.transport.base import PeerAddress


def unknown(peer: str, *, closed: bool) -> PeerUnreachable:
    """A request to, or a connection of, somebody that this node has no link to (any more)."""
    if closed:
        return PeerUnreachable("This node is stopping.", safe="Nothing was sent.")
    return PeerUnreachable(
        f"'{peer}' is not in the directory.",
        safe="Nothing was sent.",
        do="Look at `konsil swarm members`.",
        peer=peer,
    )


def too_late(peer: PeerAddress, timeout_s: float, *, problem: str, connected: bool) -> PeerUnreachable:
    """A request's deadline has passed."""
    if connected:
        what = f"'{peer.name}' did not answer in {timeout_s:g} s."
    elif problem:
        what = f"No connection to '{peer.name}' in {timeout_s:g} s. The last attempt: {problem}"
    elif peer.addresses:
        what = f"No connection to '{peer.name}' in {timeout_s:g} s."
    else:
        what = f"'{peer.name}' can only dial out, and did not in {timeout_s:g} s."
    return PeerUnreachable(
        what, safe="The request is safe to repeat.", do="See `konsil node status`.", peer=peer.name
    )


def two_nodes(peer: str) -> IdentityError:
    """A second node of a member whose first is alive."""
    return IdentityError(
        f"Two nodes with one identity: a node of '{peer}' is connected and answers, and another one came.",
        safe="The first stays connected; the other one was refused.",
        do=f"Stop one of the two nodes of '{peer}', or give the second a member name and keys of its own.",
        peer=peer,
    )


def own_expired() -> IdentityError:
    """This node cannot show who it is."""
    return IdentityError(
        "This node's own certificate has expired.",
        safe="No connection was opened; what is on the ledger and on disk is untouched.",
        do="Its Workload API has stopped issuing, or the clock is wrong: `konsil doctor`.",
    )


def handler_failed(peer: str) -> PeerRefused:
    """What the asker gets when the peer's handler raised."""
    return PeerRefused(
        "handler_failed",
        f"The peer '{peer}' could not serve a request because of an error of its own.",
        safe="Nothing was taken from it.",
        do="Its log has the error.",
    )


def lost(peer: str, reason: KonsilError) -> PeerUnreachable:
    """What every request in flight gets when its connection ends."""
    return PeerUnreachable(
        f"The connection to '{peer}' ended before its answer: {reason.what}",
        safe="The request is safe to repeat.",
        do="Ask again; the connection is made anew by itself.",
    )


def gone(why: str) -> PeerUnreachable:
    """Why a connection ends."""
    return PeerUnreachable(why, safe="Requests are safe to repeat.")


def no_streams(own: str) -> PeerRefused:
    """What a peer gets that opens a stream where nobody takes any."""
    return PeerRefused("no_streams", f"'{own}' takes no streams.", do="Compare versions and ledger engines.")


def too_many_streams(peer: str, most: int) -> PeerRefused:
    """What happens to whoever would open one more stream than a peer takes."""
    return PeerRefused(
        "too_many_streams",
        f"{most} streams to '{peer}' are open already.",
        safe="They go on; nothing was sent.",
        peer=peer,
    )


def given_up(why: str) -> PeerUnreachable:
    """Why a stream ends that this side gave up."""
    return PeerUnreachable(why, safe="The connection goes on.")


def reset(peer: str, reason: bytes, *, refused: bool) -> PeerRefused:
    """Why a stream ends that the peer refused or gave up, in the peer's words."""
    words = reason.decode("utf-8", "replace")
    shown = "".join(letter if letter.isprintable() else " " for letter in words) or "It gave no reason."
    code, verb = ("stream_refused", "refused") if refused else ("stream_ended", "ended")
    return PeerRefused(code, f"The peer '{peer}' {verb} a stream: {shown}", peer=peer)


def cut_short(peer: str, reason: KonsilError) -> PeerUnreachable:
    """What every stream gets when its connection ends."""
    return PeerUnreachable(
        f"The connection to '{peer}' ended, and its streams with it: {reason.what}",
        do="Open another stream; the connection is made anew by itself.",
    )


def not_asked(what: str) -> FrameError:
    """A peer sends what it may not."""
    return FrameError(
        what,
        safe="Nothing was taken from it and no memory was reserved; the connection is closed.",
        do="The peer runs another version of Konsil, or is hostile: compare versions with `konsil doctor`.",
    )


def ended(*, in_frame: bool) -> KonsilError:
    """The peer sent its last byte. ``in_frame``: too early."""
    if in_frame:
        return FrameError(
            "The peer closed in the middle of a frame.",
            safe="Nothing was taken from it; requests are safe to repeat.",
            do="It is tried again by itself.",
        )
    return PeerUnreachable(
        "The peer closed the connection.",
        safe="Requests are safe to repeat.",
        do="It is tried again by itself.",
    )
