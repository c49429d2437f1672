"""One member, one vote, under every engine: who is admitted, who is removed, which settings hold."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.rules import (
    Agree,
    Call,
    ProposeRemove,
    ProposeStudySettings,
    ProposeSwarmSettings,
    SwarmSettings,
    Vote,
)
from konsil.core.wall import AskAdmit
from konsil.errors import KonsilError
from konsil.node.config import read_config

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def put_to_the_vote(kept, proposer: str, call: Call, *voters: str) -> int:
    """Open a vote and let these members say yes; the proposal's number."""
    swarm = kept.swarm_of_test
    swarm.control(proposer).call(call)
    number = len(swarm.control(proposer).state().proposals)
    kept.say_yes(number, *voters)
    return number


def test_members_change_the_swarms_settings_and_a_studys_and_remove_a_member(kept):
    swarm = kept.swarm()
    swarm.start()
    put_to_the_vote(kept, "bonn", ProposeSwarmSettings(SwarmSettings(proposal_s=3600)), "koeln", "lyon")
    assert (
        swarm.wait("koeln", lambda state: state.proposals[0].outcome == "passed").settings.proposal_s == 3600
    )

    settings = kept.study(rounds=9)
    changed = replace(settings, rounds=2)
    put_to_the_vote(kept, "lyon", ProposeStudySettings(changed), "koeln", "bonn")
    swarm.wait("berlin", lambda state: state.studies["aml"].settings.rounds == 2)

    put_to_the_vote(kept, "berlin", ProposeRemove("lyon", "left"), "koeln", "bonn")
    rest = [name for name in swarm.members if name != "lyon"]
    for name in rest:
        swarm.wait(name, lambda state: not state.members["lyon"].active)
    kept.announce("koeln", 1)
    state = kept.alike(*rest)
    assert [proposal.outcome for proposal in state.proposals] == ["passed"] * 3
    for name in rest:
        assert "lyon" not in {peer.member for peer in swarm.control(name).node().peers}


def test_a_fifth_member_is_admitted_by_vote_while_a_study_runs_and_learns_with_the_others(kept):
    swarm = kept.swarm()
    swarm.start()
    kept.study(rounds=12, silence_s=10)
    trainers = kept.train(pause=0.4)
    trainers[0].until("merged", 1)

    swarm.make("oslo")
    swarm.give_genesis("oslo", swarm.genesis)
    card = read_config(swarm.directory("oslo")).card_file.read_bytes()
    swarm.control("bonn").ask(AskAdmit(card))
    kept.say_yes(1, "koeln", "lyon")
    swarm.start(["oslo"])
    state = swarm.wait("oslo", lambda state: "oslo" in state.members and "aml" in state.studies)
    swarm.control("oslo").call(Agree("aml", state.studies["aml"].settings_digest))
    fifth = kept.site.train(swarm, "aml", "oslo", 5.0, "--pause", "0.4")
    ends = [trainer.end()[-1] for trainer in (*trainers, fifth)]

    assert [end["event"] for end in ends] == ["ended"] * 5, ends
    assert len({end["digest"] for end in ends}) == 1
    state = kept.alike(*swarm.members, "oslo")
    history = state.studies["aml"].history
    assert set(history[0].roster) == set(kept.trainers)
    assert set(history[-1].roster) == {*kept.trainers, "oslo"}


def test_who_is_no_member_reads_nothing_and_writes_nothing(kept):
    swarm = kept.swarm()
    swarm.start()
    kept.study()
    swarm.make("mallory")
    swarm.give_genesis("mallory", swarm.genesis)
    swarm.start(["mallory"])
    kept.announce("bonn", 1)

    stranger = swarm.control("mallory")
    assert stranger.state().height == 0
    assert not any(peer.connected for peer in stranger.node().peers)
    with pytest.raises(KonsilError, match=r"not an active member|of this swarm"):
        stranger.call(Vote(1, yes=True))
    assert "mallory" not in kept.alike(*(name for name in swarm.members if name != "mallory")).members
