"""A member that comes to a swarm that exists."""

from __future__ import annotations

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
