"""What must survive: killed nodes, killed mergers, killed operators, members that come late, strangers."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from konsil.cli import main
from konsil.core.rules import Agree, ProposeAdmit, StudySettings, Vote
from konsil.core.wall import AskAdmit
from konsil.errors import KonsilError
from konsil.evaluation.loopback import LoopbackSwarm
from konsil.node.config import read_config
from konsil.node.genesis import read_genesis

MEMBERS = ("berlin", "bonn", "koeln", "lyon")
OPERATOR = "berlin"  # the first in name order keeps the local ledger

pytestmark = pytest.mark.timeout(180)


def settings(**changes: object) -> StudySettings:
    known: dict[str, object] = {
        "name": "aml",
        "min_members": 4,
        "quorum": 2,
        "rounds": 6,
        "every_steps": 1,
        "weighting": "equal",
        "silence_s": 6,
        "merge_s": 10,
        "audit_fraction": 0.5,
    }
    return StudySettings(**(known | changes))


def verify_everywhere(swarm: LoopbackSwarm, names=MEMBERS) -> None:
    """Every member's own copy of the history replays, to the same state."""
    digests = set()
    for name in names:
        result = CliRunner().invoke(main, ["ledger", "verify", "--dir", str(swarm.directory(name)), "--json"])
        assert result.exit_code == 0, result.output
        digests.add(result.output)
    assert len(digests) == 1, digests


def test_a_node_killed_in_a_round_comes_back_and_the_study_ends_with_all_four(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(silence_s=60))
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "0.5")
        for number, name in enumerate(MEMBERS, start=1)
    ]
    trainers[2].until("merged", 2)
    swarm.kill("koeln")
    swarm.start(["koeln"])
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4
    assert len({end["digest"] for end in ends}) == 1
    state = swarm.wait("koeln", lambda state: state.studies["aml"].phase == "finished")
    history = state.studies["aml"].history
    assert len(history) == 6
    assert set(history[-1].roster) == set(MEMBERS)
    swarm.close()
    verify_everywhere(swarm)


def test_a_merger_killed_while_it_merges_is_left_out_and_the_round_completes(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(parts="leader", rounds=8))
    trainers = {
        name: site.train(swarm, "aml", name, number, "--elements", "4000000")
        for number, name in enumerate(MEMBERS, start=1)
    }

    def merged_by_another(state) -> bool:
        current = state.studies["aml"].open
        return current is not None and current.phase == "merging" and current.parts[0].leader != OPERATOR

    state = swarm.wait(OPERATOR, merged_by_another)
    current = state.studies["aml"].open
    victim = current.parts[0].leader
    swarm.kill(victim)
    trainers[victim].kill()
    others = [name for name in MEMBERS if name != victim]
    ends = [trainers[name].end()[-1] for name in others]

    assert [end["event"] for end in ends] == ["ended"] * 3
    assert len({end["digest"] for end in ends}) == 1
    history = swarm.control(OPERATOR).state().studies["aml"].history
    assert len(history) == 8
    without = [record for record in history if victim not in record.roster]
    assert without
    assert all(record.absent[victim] for record in without)
    swarm.close()
    verify_everywhere(swarm, others)


def test_the_ledgers_operator_killed_and_restarted_loses_nothing(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(silence_s=60))
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "0.3")
        for number, name in enumerate(MEMBERS, start=1)
    ]
    trainers[1].until("merged", 2)
    swarm.kill(OPERATOR)
    swarm.start([OPERATOR])
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4
    assert len({end["digest"] for end in ends}) == 1
    swarm.close()
    verify_everywhere(swarm)


def test_a_training_script_that_dies_does_not_hold_the_others_up_and_may_join_again(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(rounds=10, silence_s=3))
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "0.4")
        for number, name in enumerate(MEMBERS, start=1)
    ]
    trainers[3].until("merged", 1)
    trainers[3].kill()
    swarm.wait("bonn", lambda state: any("lyon" in r.absent for r in state.studies["aml"].history))
    again = site.train(swarm, "aml", "lyon", 4.0, "--pause", "0.4")
    ends = [trainer.end()[-1] for trainer in (*trainers[:3], again)]

    assert [end["event"] for end in ends] == ["ended"] * 4
    assert len({end["digest"] for end in ends}) == 1
    history = swarm.control("bonn").state().studies["aml"].history
    assert "silent" in {record.absent.get("lyon") for record in history}
    assert "lyon" in history[-1].roster


def test_a_fifth_member_admitted_by_vote_joins_the_running_study(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(rounds=14))
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "0.5")
        for number, name in enumerate(MEMBERS, start=1)
    ]
    trainers[0].until("merged", 1)

    swarm.make("oslo")
    swarm.give_genesis("oslo", swarm.genesis)
    card = read_config(swarm.directory("oslo")).card_file.read_bytes()
    swarm.control("bonn").ask(AskAdmit(card))
    for voter in ("koeln", "lyon"):
        state = swarm.wait(voter, lambda state: state.proposals)
        assert isinstance(state.proposals[0].subject, ProposeAdmit)
        swarm.control(voter).call(Vote(state.proposals[0].number, yes=True))
    swarm.start(["oslo"])
    state = swarm.wait("oslo", lambda state: "oslo" in state.members and "aml" in state.studies)
    swarm.control("oslo").call(Agree("aml", state.studies["aml"].settings_digest))
    fifth = site.train(swarm, "aml", "oslo", 5.0, "--pause", "0.5")
    ends = [trainer.end()[-1] for trainer in (*trainers, fifth)]

    assert [end["event"] for end in ends] == ["ended"] * 5
    assert len({end["digest"] for end in ends}) == 1
    history = swarm.control("oslo").state().studies["aml"].history
    assert set(history[-1].roster) == {*MEMBERS, "oslo"}
    assert set(history[0].roster) == set(MEMBERS)
    swarm.close()
    verify_everywhere(swarm, (*MEMBERS, "oslo"))


def test_a_stranger_is_refused_and_learns_nothing(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings())
    swarm.make("mallory")
    swarm.give_genesis("mallory", read_genesis(read_config(swarm.directory(OPERATOR)).genesis_file))
    swarm.start(["mallory"])
    trainers = [site.train(swarm, "aml", name, number) for number, name in enumerate(MEMBERS, start=1)]
    ends = [trainer.end()[-1] for trainer in trainers]
    stranger = swarm.control("mallory")

    assert [end["event"] for end in ends] == ["ended"] * 4
    assert stranger.state().height == 0
    assert not stranger.state().studies
    assert not any(peer.connected for peer in stranger.node().peers)
    assert stranger.node().problems
    with pytest.raises(KonsilError):
        stranger.call(Vote(1, yes=True))
    assert "mallory" not in swarm.control(OPERATOR).state().members
