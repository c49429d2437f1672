"""Who the members are: their cards, and from the ledger and these the peers that the transport knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from konsil.core.digest import is_digest
from konsil.core.messages import MAX_CARD_BYTES, GetCard
from konsil.core.rules import Member, MemberRecord, State
from konsil.errors import IdentityError, KonsilError
from konsil.identity.card import Card, card_digest, check_record, read_card, write_card
from konsil.identity.verify import canonical_bundle
from konsil.node.peers import Peers
from konsil.transport.base import PeerAddress

CARD_TIMEOUT_S = 10.0

OLD_BUNDLE_S = 3600
"""So long after a member has renewed its card is its old one still good where the new one could not be had: a
line that was cut at that moment must not part the two for good, and a root that was given up must not be
trusted for long. In ledger time."""

SETTLED_NS = 1_000_000_000
"""A folder's time moves in steps of milliseconds: what comes within the step in which it was looked at leaves
no trace there. So a folder that changed so recently is looked at again."""

UNSEEN = -1

Who = tuple[str, str, str]
"""A member's name, SPIFFE ID and ledger key: what its cards have in common."""

_log = structlog.get_logger(__name__)


class Cards:
    """The members' cards in this node's directory, by digest."""

    def __init__(self, directory: Path) -> None:
        """Use a directory that exists."""
        self.directory = directory
        self._seen_ns = UNSEEN
        self._files: dict[str, Card | None] = {}
        self._kin: dict[Who, tuple[Card, ...]] = {}

    def kin(self) -> dict[Who, tuple[Card, ...]]:
        """The cards that are here of each member, oldest first: who has renewed its card has several.

        Each file is read and checked once; the folder is looked at again only when a file came or went.
        """
        changed_ns = self.directory.stat().st_mtime_ns
        if changed_ns == self._seen_ns:
            return self._kin
        names = {path.name for path in self.directory.glob("*.json") if is_digest(path.stem)}
        self._files = {name: self._files[name] if name in self._files else self._read(name) for name in names}
        found: dict[Who, list[Card]] = {}
        for card in self._files.values():
            if card is not None:
                found.setdefault((card.name, card.spiffe_id, card.ledger_key), []).append(card)
        self._kin = {who: tuple(sorted(cards, key=lambda c: c.issued_s)) for who, cards in found.items()}
        self._seen_ns = changed_ns if abs(time.time_ns() - changed_ns) > SETTLED_NS else UNSEEN
        return self._kin

    def _read(self, name: str) -> Card | None:
        try:
            card = read_card((self.directory / name).read_bytes())
        except (OSError, IdentityError):
            return None
        return card if f"{card_digest(card)}.json" == name else None

    def bytes_of(self, digest: str) -> bytes | None:
        """A card's bytes, as peers ask for them."""
        if not is_digest(digest):
            return None
        try:
            return (self.directory / f"{digest}.json").read_bytes()
        except OSError:
            return None

    def get(self, record: MemberRecord) -> Card | None:
        """The card that stands on the ledger for a member, checked; None if it is not here."""
        data = self.bytes_of(record.card)
        if data is None:
            return None
        card = read_card(data)
        check_record(card, record)
        return card

    def put(self, data: bytes) -> Card:
        """Keep a card.

        Raises:
            IdentityError: it is not a card, or one of its signatures is wrong.
        """
        card = read_card(data)
        write_card(card, self.directory / f"{card_digest(card)}.json")
        return card


class Directory:
    """Turns the ledger's members into peers, and fetches cards that are not here yet."""

    def __init__(self, me: str, cards: Cards) -> None:
        """``me``: is no peer of its own."""
        self.me = me
        self.cards = cards
        self._peers: dict[tuple[MemberRecord, str], PeerAddress] = {}

    def peers(self, state: State) -> tuple[list[PeerAddress], list[MemberRecord]]:
        """Every other active member as a peer; and those whose card is still to be fetched.

        Who has just renewed its card is both: it is known by its old one until the new one is here.
        A card is read and checked once for each record: this is asked at every move of the ledger.
        """
        known, self._peers = self._peers, {}
        kin = self.cards.kin()
        old: list[PeerAddress] = []
        lacking: list[MemberRecord] = []
        for name, member in state.members.items():
            if name == self.me or not member.active:
                continue
            record = member.record
            own = kin.get((record.name, record.spiffe_id, record.ledger_key), ())
            newest = own[-1] if own else None
            key = record, newest.svid_signature if newest else ""
            peer = known.get(key) or self._peer(record, newest)
            if peer is not None:
                self._peers[key] = peer
                continue
            lacking.append(record)
            if newest is not None and _may_use_its_old_card(member, state.now_s):
                old.append(_address(record, newest.bundle))
        return [*self._peers.values(), *old], lacking

    def _peer(self, record: MemberRecord, newest: Card | None) -> PeerAddress | None:
        """A member as its card on the ledger says; None if that is not here.

        A newer card beside it was put there by hand (`konsil swarm enter`): this copy of the ledger may be
        behind, so far that nobody could be reached any more by what it holds. The ledger key signed it.
        """
        try:
            card = self.cards.get(record)
        except IdentityError as error:
            _log.error("a member's card is damaged; it is fetched again", member=record.name, why=error.what)
            return None
        if card is None:
            return None
        newer = newest is not None and newest.issued_s > card.issued_s
        return _address(record, card.bundle + newest.bundle if newest and newer else card.bundle)

    def trust(self, data: bytes, state: State) -> None:
        """Keep a member's newer card that somebody brought here by hand.

        Raises:
            IdentityError: it is no card, of no other member by these keys, or not newer than the one on the
                ledger.
        """
        card = read_card(data)
        member = state.members.get(card.name)
        record = member.record if member is not None and member.active else None
        same = record is not None and (record.spiffe_id, record.ledger_key) == (
            card.spiffe_id,
            card.ledger_key,
        )
        if record is None or not same or card.name == self.me:
            raise _not_taken(
                card, f"the ledger knows no other member {card.name!r} by its SPIFFE ID and ledger key"
            )
        if record.card == card_digest(card):
            return
        known = self.cards.get(record)
        if known is not None and card.issued_s <= known.issued_s:
            raise _not_taken(card, "it is not newer than the one on the ledger")
        self.cards.put(data)

    async def fetch(self, records: Iterable[MemberRecord], peers: Peers) -> bool:
        """Fetch cards from connected peers; whether any came."""
        came = [await self._fetch_one(record, peers) for record in records]
        return any(came)

    async def _fetch_one(self, record: MemberRecord, peers: Peers) -> bool:
        # Who has renewed its card has it first.
        for peer in sorted(peers.connected(), key=lambda peer: peer != record.name):
            try:
                _, received = await peers.ask(
                    peer, GetCard(record.card), timeout_s=CARD_TIMEOUT_S, limit_bytes=MAX_CARD_BYTES
                )
                card = read_card(bytes(received.body))
                check_record(card, record)
                await asyncio.to_thread(self.cards.put, bytes(received.body))
            except KonsilError as error:
                _log.debug("no card from a peer", peer=peer, member=record.name, why=error.what)
                continue
            _log.info("card fetched", member=record.name, peer=peer)
            return True
        return False


def _may_use_its_old_card(member: Member, now_s: int) -> bool:
    return bool(member.renewed_s) and now_s < member.renewed_s + OLD_BUNDLE_S


def _not_taken(card: Card, why: str) -> IdentityError:
    return IdentityError(
        f"The card of {card.name!r} is not taken: {why}.",
        safe="Nothing was changed.",
        do="Ask the member for NAME.card.json in its node's directory, as it is now.",
        member=card.name,
    )


def _address(record: MemberRecord, bundle: str) -> PeerAddress:
    trusted = canonical_bundle(bundle.encode())
    return PeerAddress(record.name, record.spiffe_id, record.addresses, trusted)


def by_spiffe_id(peers: Mapping[str, PeerAddress]) -> dict[str, bytes]:
    """SPIFFE ID -> bundle, for the check after a handshake."""
    return {peer.spiffe_id: peer.bundle for peer in peers.values()}
