"""Be another member with its public card, which anybody may have, but without its keys."""

from __future__ import annotations

from msgspec.structs import replace
from stage import ASLEEP, OPERATOR, OTHER, Stage, alone

from konsil.core.messages import LedgerSubmit
from konsil.core.rules import Announce, ProposeAdmit, ProposeRemove, SignedCall, encode_signed, signing_bytes
from konsil.core.wall import AskAdmit, Failed
from konsil.errors import KonsilError
from konsil.identity.card import Card, encode_card, make_card, member_record, read_card
from konsil.wall.frames import frame


def attack(stage: Stage) -> None:
    """Calls in another's name, cards with another's key, and cards that were changed on the way."""
    _calls(stage)
    stolen = read_card((stage.swarm.directory(ASLEEP) / f"{ASLEEP}.card.json").read_bytes())
    _admissions(stage, stolen)
    _cards(stage, stolen)


def _calls(stage: Stage) -> None:
    state = stage.state()
    call = ProposeRemove(OTHER)
    sequence = state.members[ASLEEP].sequence + 1
    statement = signing_bytes(stage.genesis, ASLEEP, sequence, call)
    true = stage.own.key.sign(statement)
    with stage.member() as line:
        for what, signature in (
            ("its own key", true),
            ("no key", bytes(64)),
            ("half a key", true[:32] + bytes(32)),
        ):
            signed = encode_signed(SignedCall(stage.genesis, ASLEEP, sequence, call, signature))
            stage.refused(line.ask(LedgerSubmit(signed)), "bad_signature")
            stage.says(f"a call in {ASLEEP}'s name, signed with {what}: refused")
    stage.must(stage.state() == state, "the ledger was changed")


def _admissions(stage: Stage, stolen: Card) -> None:
    taken = member_record(stolen)
    with stage.member() as line:
        for what, record in (
            ("another member's name", replace(member_record(own_card(stage)), name=OTHER)),
            (
                "another member's ledger key",
                replace(taken, name="mallory", spiffe_id="spiffe://mallory.konsil/node"),
            ),
            ("another member's SPIFFE ID", replace(taken, name="mallory", ledger_key="1" * 64)),
        ):
            refusal = stage.refused(stage.submit(line, ProposeAdmit(record)), "name_taken", "identity_taken")
            stage.says(f"a vote on somebody with {what}: {refusal.code}")
        stage.refused(stage.submit(line, Announce(("127.0.0.1:1",) * 9)), "bad_addresses")


def own_card(stage: Stage) -> Card:
    """The attacker's own card."""
    own = stage.own
    return make_card(own.name, own.svid, own.authority.bundle, own.key, own.config.addresses)


def _cards(stage: Stage, stolen: Card) -> None:
    own = stage.own
    mine = own_card(stage)
    forged = {
        "the stolen card with the attacker's address": replace(stolen, addresses=("127.0.0.1:6666",)),
        "the stolen card under another name": replace(stolen, name="mallory"),
        "the attacker's card with the stolen ledger key": replace(mine, ledger_key=stolen.ledger_key),
        "the attacker's card with the stolen bundle": replace(mine, bundle=stolen.bundle),
        "the stolen chain, signed by the attacker": make_signed(
            stage, replace(stolen, ledger_key=own.key.public)
        ),
    }
    for what, card in forged.items():
        try:
            read_card(encode_card(card))
        except KonsilError as error:
            stage.says(f"{what}: {error.kind}")
        else:
            stage.must(held=False, what=f"{what}: was believed")
        with stage.wall(OPERATOR, "control.sock") as wall:
            wall.send(frame(AskAdmit(encode_card(card))))
            stage.must(isinstance(wall.hears(), Failed), f"{what}: the node took it")


def make_signed(stage: Stage, card: Card) -> Card:
    """A card whose ledger key's signature is right, and whose SVID's cannot be."""
    from konsil.identity import card as cards  # noqa: PLC0415 - only this forges

    blank = replace(card, svid_signature="", ledger_signature="")
    signed = replace(blank, svid_signature=stage.own.svid.sign(cards._svid_statement(blank)).hex())  # noqa: SLF001
    return replace(signed, ledger_signature=stage.own.key.sign(cards._ledger_statement(signed)).hex())  # noqa: SLF001


if __name__ == "__main__":
    alone(attack)
