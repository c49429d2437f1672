"""This node's certificate as peers can check it, and its trust bundle on the ledger, as authorities change.

An authority that gets another root says so before it signs with it: for a while its bundle holds both. The
node puts each bundle on the ledger, on a card that both of its keys have signed, and peers trust it from then
on. A certificate of the new root is used when the ledger knows that root, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from konsil.core.rules import MemberRecord, Renew
from konsil.errors import IdentityError, KonsilError
from konsil.identity.card import Card, encode_card, make_card, member_record, write_card
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.source import SvidSource
from konsil.identity.svid import Svid
from konsil.identity.verify import bundle_digest, verify_chain
from konsil.ledger.base import Ledger
from konsil.node.config import Config
from konsil.node.directory import Cards

AGAIN_S = 5.0
"""What the ledger did not take is said again after this."""

_log = structlog.get_logger(__name__)


class Renewal:
    """Use ``async with`` once ``ledger`` is set; ``svid`` can be asked before.

    Args:
        config: the member's.
        key: its ledger key.
        source: follows its Workload API.
        cards: the folder from which peers get its card.
        clock: unix time, in seconds.
    """

    ledger: Ledger | None = None

    def __init__(
        self,
        config: Config,
        key: LedgerKey,
        source: SvidSource,
        cards: Cards,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._key = key
        self._source = source
        self._cards = cards
        self._clock = clock
        self._used: Svid | None = None
        self._judged: tuple[Svid, str] | None = None
        self._digest = b"", ""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._forget: Callable[[], None] = lambda: None
        self.problem = ""

    # --- the certificate in use ----------------------------------------------------------------

    @property
    def svid(self) -> Svid:
        """The SVID to show to peers: the newest one that they can check by the ledger.

        One of a root that the ledger does not know yet waits, as long as the one before it is valid.

        Raises:
            IdentityError: there is none.
        """
        newest, record = self._source.svid, self._record()
        used = self._used
        if used is None or record is None or used.not_after_s <= self._clock():
            self._used = newest
        elif newest is not used and self._judged != (newest, record.card):
            self._judged = newest, record.card
            if self._checks_out(newest, record):
                self._used = newest
        return self._used or newest

    def _checks_out(self, svid: Svid, record: MemberRecord) -> bool:
        """Whether peers who have the card on the ledger believe this SVID."""
        try:
            card = self._cards.get(record)
            if card is not None:
                verify_chain(svid.chain_der, card.bundle.encode(), svid.spiffe_id, self._clock())
        except IdentityError:
            _log.info("a certificate waits until the ledger knows its root", not_after_s=svid.not_after_s)
            return False
        return True

    # --- the bundle on the ledger --------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._forget = self._source.on_change(self.look)
        self._task = asyncio.create_task(self._follow(), name="konsil-renewal")
        self.look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def look(self) -> None:
        """Something may have changed: the bundle, or what the ledger says of this member."""
        self._news.set()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if self.problem else None):
                    await self._news.wait()
            self._news.clear()
            try:
                await self._renew()
            except KonsilError as error:
                if error.what not in self.problem:
                    _log.warning("the new trust bundle is not on the ledger yet", why=str(error))
                self.problem = f"The new trust bundle is not on the ledger yet. {error}"
            except Exception:  # noqa: BLE001 - a mistake of ours must not end this for good
                _log.exception("the new trust bundle could not be put on the ledger")
                self.problem = "The new trust bundle is not on the ledger yet: see this node's log."
            else:
                self.problem = ""

    async def _renew(self) -> None:
        """Put the bundle on the ledger, if another one stands there."""
        record, ledger = self._record(), self.ledger
        if record is None or ledger is None or self._bundle_digest() == record.bundle:
            return
        svid = self._source.svid
        if svid.spiffe_id != record.spiffe_id:
            raise IdentityError(
                f"The Workload API issues {svid.spiffe_id} now, and the ledger knows {record.spiffe_id}.",
                safe="The card on the ledger stays as it is.",
                do="Register the node under its old SPIFFE ID, or be admitted anew with a new card.",
            )
        card = await asyncio.to_thread(self._card, record, self._last_card(record))
        new = member_record(card)
        height = await ledger.submit(Renew(new.bundle, new.card))
        _log.info("the ledger has this member's new trust bundle", card=new.card, height=height)

    @property
    def announced(self) -> bool:
        """Whether the ledger has the present bundle."""
        record = self._record()
        return record is not None and self._bundle_digest() == record.bundle

    def _bundle_digest(self) -> str:
        """The present bundle's digest: asked at every move of the ledger, made once for each bundle."""
        bundle = self._source.bundle
        if self._digest[0] != bundle:
            self._digest = bundle, bundle_digest(bundle)
        return self._digest[1]

    def _card(self, record: MemberRecord, before: Card | None) -> Card:
        """The card with the present bundle, which peers can fetch from now on: kept before it is announced.

        ``before``: its newest card so far. One that an earlier attempt has made is taken up.
        """
        bundle = self._source.bundle
        if before is not None and before.bundle.encode() == bundle:
            return before
        # Of two cards the later is the newer, also where this machine's clock was put back in between.
        now_s = max(self._clock(), before.issued_s + 1 if before is not None else 0)
        card = make_card(
            self._config.name,
            self._source,
            bundle,
            self._key,
            record.addresses,
            now_s=now_s,
            witness=record.witness,
        )
        self._cards.put(encode_card(card))
        write_card(card, self._config.card_file)
        return card

    def _last_card(self, record: MemberRecord) -> Card | None:
        """The newest card of this member that is here."""
        own = self._cards.kin().get((record.name, record.spiffe_id, record.ledger_key), ())
        return own[-1] if own else None

    def _record(self) -> MemberRecord | None:
        """What the ledger knows of this member; None if it is none."""
        if self.ledger is None:
            return None
        member = self.ledger.state.members.get(self._config.name)
        return member.record if member is not None and member.active else None
