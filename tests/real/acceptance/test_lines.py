"""Lines that break, hang and crawl between real nodes: a hiccup kills nothing, and slow is not dead."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

THREE = ("berlin", "bonn", "koeln")


def test_a_line_that_hangs_for_seconds_in_the_middle_of_a_round_costs_nobody_anything(lab):
    lab.make(*THREE)
    lab.study(rounds=6)
    lab.train(pause=0.2)
    lab.trainers["berlin"].until("merged", 2)
    lab.network.do("cut", "koeln")
    time.sleep(4)
    lab.network.do("heal", "koeln")
    lab.ends()
    history = lab.intact()
    assert len(history) == 6
    assert all(set(record.roster) == set(THREE) for record in history)


def test_connections_that_break_in_the_middle_of_a_round_are_made_anew(lab):
    lab.make(*THREE)
    lab.study(rounds=12)
    lab.train(pause=0.2, elements=1_000_000)
    lab.trainers["berlin"].until("merged", 2)
    for _ in range(2):
        lab.network.do("reset", "koeln")
        time.sleep(1)
        lab.network.do("heal", "koeln")
        time.sleep(1)
    lab.ends()
    history = lab.intact()
    assert len(history) == 12
    assert set(history[-1].roster) == set(THREE)


def test_a_node_that_reboots_in_the_middle_of_a_round_is_back_in_that_round_and_is_started_once(lab):
    lab.make(*THREE)
    lab.study(rounds=6)
    lab.train(pause=0.4)
    lab.trainers["bonn"].until("merged", 2)
    lab.swarm.kill("bonn")
    lab.swarm.start(["bonn"])
    again = lab.typed("bonn", "node", "start")
    assert again.returncode == 1
    assert again.stderr.startswith("NodeBusy: A node runs from")
    assert "It goes on undisturbed" in again.stderr
    lab.ends()
    history = lab.intact()
    assert len(history) == 6
    assert all(set(record.roster) == set(THREE) for record in history)


def test_a_gateway_that_restarts_leaves_dead_connections_and_the_nodes_notice_and_dial_again(lab):
    """A VPN's reboot: what was connected never answers again and nobody is told; new connections pass.

    What a person wants from the ledger meanwhile ends in an error, not in a hang.
    """
    lab.make(*THREE)
    lab.study(rounds=4)
    lab.train(pause=0.3)
    lab.trainers["berlin"].until("merged", 2)
    lab.network.do("lose", "koeln")
    file = lab.site.root / "other.toml"
    file.write_text('name = "other"\nevery_steps = 1\n')
    with ThreadPoolExecutor() as beside:
        proposing = beside.submit(lab.typed, "koeln", "study", "propose", str(file), timeout_s=60)
        problem = problem_at(lab, "koeln", "berlin: The peer has been silent for")
        assert "Requests are safe to repeat." in problem
        ended = proposing.result()
    assert ended.returncode == 1
    said = " ".join(ended.stderr.split())
    assert said.startswith("LedgerUnreachable: No answer from operator 'berlin' within 30 s.")
    assert "nothing else was changed. Submitting it again is safe." in said
    lab.network.do("heal", "koeln")
    lab.ends()
    history = lab.intact()
    assert len(history) == 4
    assert all(set(record.roster) == set(THREE) for record in history)
    assert not lab.swarm.control("koeln").node().problems


def problem_at(lab, name: str, words: str, timeout_s: float = 30.0) -> str:
    """What a person at this member reads in `konsil node status` once something with these words is wrong."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        for problem in lab.swarm.control(name).node().problems:
            if words in problem:
                assert problem in lab.konsil(name, "node", "status").replace("\n", " ")
                return problem
        time.sleep(0.1)
    raise AssertionError(lab.swarm.control(name).node().problems)


def test_a_site_in_a_black_hole_is_left_out_by_name_and_takes_part_again_once_the_line_is_back(lab):
    lab.make(*THREE)
    lab.study(rounds=20, silence_s=3)
    lab.train(pause=0.4)
    lab.trainers["koeln"].until("merged", 2)
    lab.network.do("cut", "koeln")
    without = lab.wait("berlin", lambda study: "koeln" in study.history[-1].absent).history[-1]
    assert without.absent["koeln"] in {"silent", "unreachable"}
    lab.network.do("heal", "koeln")
    lab.wait("berlin", lambda study: "koeln" in study.history[-1].roster)
    lab.ends()
    history = lab.intact()
    assert len(history) == 20
    assert set(history[-1].roster) == set(THREE)


def test_two_sites_that_lose_sight_of_each_other_in_a_study_go_on_through_the_third(lab):
    lab.make(*THREE)
    lab.study(rounds=3)
    lab.train(pause=0.2, elements=250_000)
    lab.trainers["berlin"].until("merged", 1)
    lab.network.do("cut", "koeln", peer="bonn")
    lab.ends()
    links = {peer.member: peer for peer in lab.swarm.control("koeln").node().peers}
    assert links["berlin"].connected
    assert not links["bonn"].connected
    history = lab.intact()
    assert len(history) == 3
    assert all(set(record.roster) == set(THREE) and not record.absent for record in history)


@pytest.mark.parametrize("merge_s", [30, 1])
def test_a_site_twenty_times_slower_than_the_others_is_waited_for_and_merged(lab, merge_s):
    """A merge over its line takes longer than `merge_s` = 1: no fixed time throws it, or others, out."""
    lab.make(*THREE)
    for name in THREE:
        lab.network.do("slow", name, bytes_s=20e6)
    lab.study(rounds=2, silence_s=5, merge_s=merge_s)
    lab.network.do("slow", "koeln", bytes_s=1e6)
    lab.train(elements=250_000)
    lab.ends()
    history = lab.intact()
    assert len(history) == 2
    assert all(set(record.roster) == set(THREE) and not record.absent for record in history)


def test_who_trains_longer_than_the_patience_is_left_out_as_too_slow_and_stalls_nobody(lab):
    lab.make(*THREE)
    lab.study(rounds=2, silence_s=2, patience_s=3)
    lab.train("berlin", "bonn")
    lab.train("koeln", pause=60)
    lab.ends("berlin", "bonn")
    lab.trainers["koeln"].kill()
    history = lab.intact()
    assert history[0].absent == {"koeln": "too slow"}
    assert all(set(record.roster) == {"berlin", "bonn"} for record in history)


def test_with_200_ms_each_way_on_every_line_all_rounds_go_through_at_the_first_attempt(lab):
    lab.make(*THREE, "lyon", start=False)
    lab.network.do("delay", delay_s=0.2)
    lab.swarm.start()
    lab.study(rounds=2, audit_fraction=1.0)
    lab.train(elements=300_000)
    lab.ends()
    history = lab.intact()
    assert len(history) == 2
    assert all(len(record.roster) == 4 and record.attempt == 1 for record in history)
    assert all(not record.absent and not record.disputes for record in history)
