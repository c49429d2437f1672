"""A member's trust bundle changes: another card stands for it, and it stays who was admitted."""

from __future__ import annotations

from msgspec.structs import replace

from konsil.core.rules.calls import Renew
from konsil.core.rules.refusing import require, require_digest
from konsil.core.rules.state import State

MAX_RENEWALS = 16
RENEWAL_S = 600
"""A member may renew its card so often at once, and then once in this time: an authority that changes its
root every hour, adding the new one and taking the old one away, stays far below. All fetch each card."""


def renew(state: State, caller: str, call: Renew, now_s: int) -> State:
    """Put the caller's new trust bundle and card on record; who it is stays as it was admitted."""
    require_digest(call.bundle, "digest of the trust bundle")
    require_digest(call.card, "digest of the card")
    member = state.members[caller]
    if call.card == member.record.card:
        require(
            call.bundle == member.record.bundle,
            "same_card",
            f"The card of '{caller}' on the ledger holds another bundle: a new bundle takes a new card.",
        )
        return state
    for name, other in state.members.items():
        require(
            other.record.card != call.card,
            "card_taken",
            f"This is the card of '{name}', not of '{caller}'.",
            do="Renew with the card that this member's own keys have signed.",
        )
    counted = max(0, member.renewals - (now_s - member.renewed_s) // RENEWAL_S)
    require(
        counted < MAX_RENEWALS,
        "too_many_renewals",
        f"'{caller}' has renewed its card {counted} times within a short time, the most that are allowed.",
        do=f"One more is allowed {RENEWAL_S} s after the last one.",
    )
    record = replace(member.record, bundle=call.bundle, card=call.card)
    member = replace(member, record=record, renewed_s=now_s, renewals=counted + 1)
    return replace(state, members=state.members | {caller: member})
