"""A member that comes to a swarm that exists."""

from __future__ import annotations

import time
from pathlib import Path

from konsil.identity.authority import Authority
from konsil.identity.card import card_digest, make_card, write_card
from konsil.identity.ledger_key import LedgerKey
from konsil.node.config import read_config


def test_a_late_member_gets_the_same_genesis_and_the_founders_cards(site):
    site.found()
    site.init("rennes")
    lyon = read_config(site.root / "lyon")
    cards = [str(path) for path in lyon.cards_dir.glob("*.json")]
    entered = site.json("swarm", "enter", str(lyon.genesis_file), *cards, member="rennes")
    rennes = read_config(site.root / "rennes")
    assert rennes.genesis_file.read_bytes() == lyon.genesis_file.read_bytes()
    assert len(entered["cards"]) == len(cards) == len(list(rennes.cards_dir.glob("*.json")))
    site.run("swarm", "enter", str(lyon.genesis_file), *cards, member="rennes")  # once more changes nothing


def test_without_the_operators_card_there_is_nobody_to_connect_to(site):
    site.found()
    site.init("rennes")
    lyon = read_config(site.root / "lyon")
    result = site.run(
        "swarm", "enter", str(lyon.genesis_file), site.card("rennes"), member="rennes", expect=1
    )
    assert "The card of 'lyon', who serves the ledger, is not among the cards." in result.stderr
    assert not read_config(site.root / "rennes").genesis_file.exists()


def test_newer_cards_of_founders_are_kept_too_and_those_of_strangers_are_not(site):
    site.found()
    site.init("rennes")
    lyon, rennes = read_config(site.root / "lyon"), read_config(site.root / "rennes")
    cards = [str(path) for path in lyon.cards_dir.glob("*.json")]
    authority = Authority.create(site.root / "next", lyon.trust_domain)
    now_s = time.time() + 60
    newer = make_card(
        "lyon",
        authority.issue(now_s=now_s),
        authority.bundle,
        LedgerKey.load(lyon.ledger_key_file),
        now_s=now_s,
    )
    path = site.root / "newer.json"
    write_card(newer, path)
    site.run(
        "swarm", "enter", str(lyon.genesis_file), str(path), site.card("rennes"), *cards, member="rennes"
    )
    kept = {path.stem for path in rennes.cards_dir.iterdir()}
    assert kept == {Path(card).stem for card in cards} | {card_digest(newer)}
