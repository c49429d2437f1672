"""What people are told: who took part, how far it is, whom it waits for, what came out, and what never came."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest

from konsil.core.rules import Best, Plateau

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

THREE = ("berlin", "bonn", "koeln")


def test_a_study_that_went_on_without_a_site_says_so_wherever_a_person_looks(lab):
    lab.make(*THREE)
    lab.study(rounds=5, silence_s=3)
    lab.train(pause=0.3)
    lab.trainers["koeln"].until("merged", 2)
    lab.swarm.kill("koeln")
    lab.trainers["koeln"].kill()
    lab.ends("berlin", "bonn")
    history = lab.intact("berlin", "bonn")
    without = [record for record in history if "koeln" not in record.roster]
    assert [record.number for record in without] == list(range(history[-1].number - len(without) + 1, 6))
    assert without

    # In the script's own result, on the ledger, in the command for programs, and on the model's card.
    why = without[-1].absent["koeln"]
    word = lab.trainers["berlin"].words[-2]
    assert (set(word["members"]), word["absent"]) == ({"berlin", "bonn"}, {"koeln": why})
    shown = lab.konsil("bonn", "ledger", "show", "aml", "5")
    assert "berlin took part: 1 examples, 50.0% of the merge" in shown
    assert f"koeln did not take part: {why}" in shown
    facts = json.loads(lab.konsil("bonn", "study", "status", "aml", "--json"))
    assert facts["study"]["history"][-1]["absent"] == {"koeln": why}
    page = next(lab.swarm.directory("bonn").glob("final*.md")).read_text()
    assert "koeln" in page
    assert why in page

    # It was away at the end, and gets the result by itself all the same.
    lab.swarm.start(["koeln"])
    lab.intact()


def test_a_person_sees_the_round_who_is_missing_what_is_waited_for_and_until_when(lab):
    lab.make(*THREE)
    lab.study(rounds=2, silence_s=20)
    lab.train("berlin", "bonn")
    lab.train("koeln", pause=60)
    lab.wait("berlin", lambda study: study.open is not None and len(study.open.commits) == 2)
    time.sleep(2.5)  # a heartbeat comes every 2 s
    said = lab.konsil("berlin", "study", "status", "aml")
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    for sentence in (
        r"Study 'aml' is running",
        r"rounds accepted: 0 of 2; the model: [0-9a-f]{12}",
        rf"round 1 is collecting, since {moment}",
        r"committed: berlin, bonn\n",
        rf"waits for koeln until {moment}",
        rf"next deadline: {moment} \(in \d+ s\)",
        r"this node: round 1, committed",
        r"koeln: round 1, training, 0%, heard \d s ago",
    ):
        assert re.search(sentence, said), (sentence, said)
    assert re.search(r"this node: round 1, training", lab.konsil("koeln", "study", "status", "aml"))
    seen = on_a_terminal(
        lab,
        "berlin",
        lambda: (lab.trainers["koeln"].kill(), lab.train("koeln")),
        "study",
        "status",
        "aml",
        "--follow",
    )
    assert "waits for koeln until" in seen
    assert "Study 'aml' is finished: All 2 rounds are done." in seen
    lab.ends()
    history = lab.intact()
    assert all(set(record.roster) == set(THREE) for record in history)


def on_a_terminal(lab, name: str, meanwhile, *words: str) -> str:
    """What `konsil` shows on a terminal until it ends; ``meanwhile`` happens once it shows something."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "konsil", *words, "--dir", str(lab.swarm.directory(name))]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "200"}
    )
    os.close(theirs)
    seen, shows = bytearray(), threading.Event()

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.extend(data)
                shows.set()
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert shows.wait(20)
        meanwhile()
        assert process.wait(60) == 0, seen.decode()
    finally:
        process.kill()
        process.wait()
        reader.join(20)
        os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode()).replace("\r", "")


def test_while_a_merge_is_pulled_over_a_slow_line_its_leader_is_named(lab):
    lab.make(*THREE)
    lab.study(rounds=1, parts="leader")
    for name in THREE:
        lab.network.do("slow", name, bytes_s=1e6)
    lab.train(elements=250_000)
    study = lab.wait("berlin", lambda study: study.open is not None and study.open.phase == "merging")
    leader = study.open.parts[0].leader
    said = lab.konsil("berlin", "study", "status", "aml")
    assert "round 1 is merging" in said
    assert f"part 0, led by {leader}: not published yet" in said
    assert "next deadline: " in said
    for name in THREE:
        lab.network.do("slow", name, bytes_s=0)
    lab.ends()
    lab.intact()


@pytest.mark.parametrize(
    "wanted",
    [{"best": Best("auc", "max")}, {"plateau": Plateau("auc", "max", rounds=2)}],
    ids=["best", "plateau"],
)
def test_a_metric_that_nobody_ever_reports_fails_the_study_by_its_name(lab, wanted):
    """The scripts score every merge, but by another name than the settings say."""
    lab.make(*THREE)
    lab.study(rounds=12, **wanted)
    lab.train(losses=",".join(["0.5"] * 12))
    ends = [lab.trainers[name].end()[-1] for name in THREE]
    assert [end["event"] for end in ends] == ["failed"] * 3
    for end in ends:
        assert end["kind"] == "StudyError"
        assert "'auc'" in end["what"]
        assert "brought no score" in end["what"]
        assert "propose a new study, which may start from this model" in end["what"]
    history = lab.intact(phase="failed")
    assert len(history) < 12
    assert "Study 'aml' is failed" in lab.konsil("koeln", "study", "status", "aml")
