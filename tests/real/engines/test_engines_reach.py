"""Members that nobody can dial: they help to keep the ledger like all others."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def test_members_that_only_dial_out_keep_the_ledger_too_and_no_member_is_its_only_hub(cometbft):
    kept = cometbft
    swarm = kept.swarm(dial_only=("koeln", "lyon", "witness"))
    swarm.start()
    kept.study("bonn", rounds=2, members=("bonn", "koeln", "lyon"), min_members=3, silence_s=10)
    kept.announce("lyon", 1)
    kept.kill("berlin")  # of five one may be away: from now on the votes of all others are needed
    kept.announce("lyon", 2)
    trainers = kept.train("bonn", "koeln", "lyon")
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 3, ends
    rest = [name for name in swarm.members if name != "berlin"]
    kept.alike(*rest)
    swarm.start(["berlin"])
    kept.kill("bonn")  # and the other way round
    kept.announce("lyon", 3)
    kept.announce("berlin", 1)
    kept.alike(*(name for name in swarm.members if name != "bonn"))
