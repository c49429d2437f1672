"""Every error that Konsil raises, drawn as one tree.

KonsilError
├── ConfigError              a setting, a file or the site itself is not as it must be
├── ParametersError          named arrays that cannot be merged
│   ├── SchemaMismatch       other names, dtypes or shapes than the study's
│   └── NonFinite            a NaN or an infinity
├── DigestMismatch           bytes that are not what their digest says
├── MergeMismatch            a merge that is not what its commits give
├── Refused                  the contract refused a call; nothing was changed
├── LedgerError
│   ├── LedgerUnreachable    no answer from the ledger; nothing is lost, it is tried again
│   └── JournalCorrupt       a history that does not replay
├── IdentityError            a certificate, bundle, card or signature that cannot be trusted
├── TransportError
│   ├── FrameError           bytes that break the wire format
│   ├── PeerUnreachable      no connection to a peer, or no answer in time
│   │   ├── ProxyError       the proxy on the way to a peer does not let this node through
│   │   └── UpdatesMissing   updates of a roster that cannot be had
│   └── PeerRefused          a peer answered with an error
├── NodeError
│   ├── NodeUnreachable      no node answers at this socket
│   └── NodeBusy             another node or session holds what is needed, or it must be mended first
└── StudyError               the study is not (or no longer) what the caller needs

An error says what happened, what is safe and what to do, in one message, and carries the
facts as typed fields beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DigestMismatch",
    "FrameError",
    "IdentityError",
    "JournalCorrupt",
    "KonsilError",
    "LedgerError",
    "LedgerUnreachable",
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
    "TransportError",
]


class KonsilError(Exception):
    """The root of the tree.

    Args:
        what: what happened, one or two sentences.
        safe: what is untouched or kept.
        do: what the reader can do about it.
        **fields: the facts, for programs.
    """

    def __init__(self, what: str, *, safe: str = "", do: str = "", **fields: object) -> None:
        """Join the three sentences into the message."""
        self.what = what
        self.safe = safe
        self.do = do
        self.fields = fields
        super().__init__(" ".join(filter(None, (what, safe, do))))

    @property
    def kind(self) -> str:
        """The class's name, as it stands in logs and in answers to peers."""
        return type(self).__name__


class ConfigError(KonsilError):
    """A setting, a file or the site itself is not as it must be."""


class ParametersError(KonsilError):
    """Named arrays that cannot be merged."""


class SchemaMismatch(ParametersError):
    """Other names, dtypes or shapes than the study's."""


class NonFinite(ParametersError):
    """A NaN or an infinity among the parameters."""


class DigestMismatch(KonsilError):
    """Bytes that are not what their digest says."""


class MergeMismatch(KonsilError):
    """A merge that is not what its commits give."""


class Refused(KonsilError):
    """The contract refused a call; the state is unchanged."""

    def __init__(self, code: str, what: str, *, safe: str = "", do: str = "", **fields: object) -> None:
        """Keep the code, a stable word for programs, beside the sentences."""
        super().__init__(what, safe=safe or "Nothing on the ledger was changed.", do=do, **fields)
        self.code = code


class LedgerError(KonsilError):
    """The ledger could not do what was asked."""


class LedgerUnreachable(LedgerError):
    """No answer from the ledger."""


class JournalCorrupt(LedgerError):
    """A history that does not replay."""


class IdentityError(KonsilError):
    """A certificate, bundle, card or signature that cannot be trusted."""


class TransportError(KonsilError):
    """Something between two nodes."""


class FrameError(TransportError):
    """Bytes that break the wire format."""


class PeerUnreachable(TransportError):
    """No connection to a peer, or no answer in time."""


class ProxyError(PeerUnreachable):
    """The proxy on the way to a peer does not let this node through."""


class UpdatesMissing(PeerUnreachable):
    """Members of the roster whose update could not be had, or is not a number everywhere."""

    def __init__(self, members: Iterable[str], what: str) -> None:
        """Keep the names beside the sentence."""
        super().__init__(what, safe="Accepted rounds are safe.", do="The members report it to the ledger.")
        self.members = tuple(sorted(members))


class PeerRefused(TransportError):
    """A peer answered with an error."""

    def __init__(self, code: str, what: str, *, safe: str = "", do: str = "", **fields: object) -> None:
        """Keep the peer's code beside its sentences."""
        super().__init__(what, safe=safe, do=do, **fields)
        self.code = code


class NodeError(KonsilError):
    """The member's own node could not do what was asked."""


class NodeUnreachable(NodeError):
    """No node answers at this socket."""


class NodeBusy(NodeError):
    """Another node or session holds what is needed, or it must be mended first: not now."""


class StudyError(KonsilError):
    """The study is not (or no longer) what the caller needs."""
