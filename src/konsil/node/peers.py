"""Typed requests to peers: words of core.messages over any transport."""

from __future__ import annotations

from konsil import errors
from konsil.core.messages import Answer, Failure, LedgerSubmit, Request, decode_answer, encode
from konsil.errors import KonsilError, PeerRefused, Refused
from konsil.transport.base import Received, Reply, Transport

MAX_WORDS = 1000
"""Letters of a peer's sentence that are shown here."""

NOT_HERE = "not_here"
"""A peer's code for "I do not have what is behind this digest"."""

MAX_WAIT_S = 15.0
"""The longest that a refusal may hold up the next attempt: the round machine waits no longer by itself."""

_SENTENCES = frozenset({"self", "code", "what", "safe", "do"})
"""Names that no field of an error may have: a peer's answer is put into them by name."""


class Peers:
    """Asks peers by name; a peer's failure becomes an exception here."""

    def __init__(self, transport: Transport) -> None:
        """Use a transport that somebody else opens and closes."""
        self.transport = transport

    async def ask(
        self,
        peer: str,
        request: Request,
        *,
        timeout_s: float,
        into: memoryview | None = None,
        limit_bytes: int = 0,
    ) -> tuple[Answer, Received]:
        """Send a request; its answer and raw bytes.

        Raises:
            PeerUnreachable: no answer in time.
            Refused: the contract, at the peer, refused a call.
            PeerRefused: the peer answered with any other error.
            FrameError: the answer cannot be read.
        """
        received = await self.transport.request(
            peer, encode(request), timeout_s=timeout_s, into=into, limit_bytes=limit_bytes
        )
        answer = decode_answer(received.message)
        if isinstance(answer, Failure):
            raise raised(answer, peer, by_contract=isinstance(request, LedgerSubmit))
        return answer, received

    def connected(self) -> tuple[str, ...]:
        """Peers with a connection now, in name order."""
        return tuple(sorted(link.name for link in self.transport.links() if link.connected))

    def received(self) -> dict[str, int]:
        """Bytes that have come from each connected peer over its present connections."""
        return {link.name: link.bytes_in for link in self.transport.links() if link.connected}


def printable(text: str) -> str:
    """A peer's words without what could steer a terminal, and no longer than a few lines."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_WORDS])


def raised(failure: Failure, peer: str, *, by_contract: bool = True) -> KonsilError:
    """A peer's failure as the exception to raise here.

    Args:
        failure: what the peer said.
        peer: its name.
        by_contract: whether the contract was asked, which alone refuses. Anybody else who says "Refused"
            does not answer, and must be seen not to: else nobody would report it.
    """
    what = printable(failure.what) or "No reason was given."
    safe, do = printable(failure.safe), printable(failure.do)
    code = printable(failure.code or failure.kind)
    if by_contract and failure.kind == errors.Refused.__name__:
        fields = {name: value for name, value in failure.fields.items() if _is_fact(name, value)}
        return Refused(code, what, safe=safe, do=do, **fields)
    return PeerRefused(code, f"{peer} answered: {what}", safe=safe, do=do, peer=peer)


def _is_fact(name: str, value: object) -> bool:
    """Whether a field of a peer's failure may stand beside the error's own sentences."""
    if name == "wait_s":
        return isinstance(value, int | float) and 0 <= value <= MAX_WAIT_S
    return name not in _SENTENCES


def failure_reply(error: KonsilError) -> Reply:
    """An error as the reply that tells a peer."""
    code = getattr(error, "code", "")
    fields = {
        name: value for name, value in error.fields.items() if isinstance(value, int | float | str | bool)
    }
    return Reply(encode(Failure(error.kind, str(code), error.what, error.safe, error.do, fields)))
