"""Who decides on blocks, where members do so together; and witnesses, which only do that."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.rules import (
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    Validate,
    Vote,
    initial_state,
    trainers,
    validators,
)
from konsil.errors import ConfigError


@pytest.fixture
def together(swarm):
    """A swarm whose four members keep the ledger together."""
    world = swarm()
    world.state = initial_state(replace(swarm.genesis(), engine="cometbft", operator=""))
    return world


def admit(world, newcomer):
    world.do("a", ProposeAdmit(newcomer))
    for name in "bc":
        if world.state.proposals[-1].outcome == "open":
            world.do(name, Vote(len(world.state.proposals), yes=True))


def test_founding_members_validate_where_the_engine_has_validators(swarm, together):
    assert validators(swarm().state) == ()
    assert validators(together.state) == ("a", "b", "c", "d")


def test_a_newcomer_validates_once_its_own_node_says_so(together):
    admit(together, together.record("e"))
    assert "e" not in validators(together.state)
    together.do("e", Validate(on=True))
    assert validators(together.state) == ("a", "b", "c", "d", "e")


def test_a_member_may_stop_validating_and_begin_again(together):
    together.do("b", Validate(on=False))
    assert validators(together.state) == ("a", "c", "d")
    assert together.state.members["b"].active
    together.do("b", Validate(on=True))
    assert validators(together.state) == ("a", "b", "c", "d")


def test_a_removed_member_validates_no_longer_and_not_when_it_comes_back(together):
    together.do("a", ProposeRemove("d"))
    together.do("b", Vote(1, yes=True))
    assert validators(together.state) == ("a", "b", "c")
    admit(together, together.record("d"))
    assert validators(together.state) == ("a", "b", "c")


def test_the_only_validator_cannot_be_removed(together):
    for name in "bcd":
        together.do(name, Validate(on=False))
    assert together.refused("b", ProposeRemove("a")).code == "last_validator"


def test_a_witness_has_a_vote_and_validates_but_takes_part_in_no_study(together):
    admit(together, replace(together.record("w"), witness=True))
    together.do("w", Validate(on=True))
    together.do("a", ProposeRemove("d"))
    together.do("w", Vote(2, yes=True))
    assert "w" in validators(together.state)
    assert "w" not in trainers(together.state)
    assert together.refused("w", ProposeStudy(together.settings)).code == "witness"
    named = replace(together.settings, members=("a", "b", "w"))
    assert "w" in together.refused("a", ProposeStudy(named)).what


def test_a_swarm_of_witnesses_cannot_be_founded(swarm):
    founders = tuple(replace(record, witness=True) for record in swarm.genesis().members)
    with pytest.raises(ConfigError, match="witnesses"):
        initial_state(replace(swarm.genesis(), members=founders))
