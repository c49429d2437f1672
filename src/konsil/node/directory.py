"""Who the members are: their cards, and from the ledger and these the peers that the transport knows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from konsil.core.digest import is_digest
from konsil.core.messages import MAX_CARD_BYTES, GetCard
from konsil.core.rules import MemberRecord, State
from konsil.errors import IdentityError, KonsilError
from konsil.identity.card import Card, card_digest, check_record, read_card, write_card
from konsil.node.peers import Peers
from konsil.transport.base import PeerAddress

CARD_TIMEOUT_S = 10.0

_log = structlog.get_logger(__name__)


class Cards:
    """The members' cards in this node's directory, by digest."""

    def __init__(self, directory: Path) -> None:
        """Use a directory that exists."""
        self.directory = directory

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
        self._peers: dict[MemberRecord, PeerAddress] = {}

    def peers(self, state: State) -> tuple[list[PeerAddress], list[MemberRecord]]:
        """Every other active member as a peer; and those whose card is still to be fetched.

        A card is read and checked once for each record: this is asked at every move of the ledger.
        """
        known, self._peers = self._peers, {}
        lacking: list[MemberRecord] = []
        for name, member in state.members.items():
            if name == self.me or not member.active:
                continue
            peer = known.get(member.record) or self._peer(member.record)
            if peer is None:
                lacking.append(member.record)
            else:
                self._peers[member.record] = peer
        return list(self._peers.values()), lacking

    def _peer(self, record: MemberRecord) -> PeerAddress | None:
        try:
            card = self.cards.get(record)
        except IdentityError as error:
            _log.error("a member's card is damaged; it is fetched again", member=record.name, why=error.what)
            return None
        if card is None:
            return None
        return PeerAddress(record.name, record.spiffe_id, record.addresses, card.bundle.encode())

    async def fetch(self, records: Iterable[MemberRecord], peers: Peers) -> bool:
        """Fetch cards from connected peers; whether any came."""
        came = [await self._fetch_one(record, peers) for record in records]
        return any(came)

    async def _fetch_one(self, record: MemberRecord, peers: Peers) -> bool:
        for peer in peers.connected():
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


def by_spiffe_id(peers: Mapping[str, PeerAddress]) -> dict[str, bytes]:
    """SPIFFE ID -> bundle, for the check after a handshake."""
    return {peer.spiffe_id: peer.bundle for peer in peers.values()}
