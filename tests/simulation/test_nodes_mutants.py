"""Planted bugs that worlds of real nodes find: each one breaks an invariant within some universes.

They are in the nodes' own code, which no simulation of the core alone runs. ``KONSIL_NODE_UNIVERSES`` sets in how many
universes a bug must show; without it ``WITHIN``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WITHIN = int(os.environ.get("KONSIL_NODE_UNIVERSES", "60"))
PLANT = Path(__file__).with_name("plant.py")

MUTANTS = {
    "a file's new name is not put on disk": (
        "konsil.files",
        "    _sync_folder(path.parent)\n    return True\n",
        "    return True\n",
    ),
    "a file's bytes are not put on disk": ("konsil.files", "            os.fsync(target.fileno())\n", ""),
    "a new folder's name is not put on disk": (
        "konsil.files",
        "        _sync_folder(folder.parent)\n",
        "",
    ),
    "the promise is written after the ledger heard it": (
        "konsil.node.study",
        """        if promise is not None:
            await asyncio.to_thread(self.journal.promise, promise)
        await self.site.submit(call)
""",
        """        await self.site.submit(call)
        if promise is not None:
            await asyncio.to_thread(self.journal.promise, promise)
""",
    ),
    "promises are written without waiting for the disk": (
        "konsil.node.journal",
        "        write_whole(self.path, [data])\n",
        "        self.path.write_bytes(data)\n",
    ),
    "training is told that scores are known before they are on disk": (
        "konsil.node.scoring",
        "            await asyncio.to_thread(self._journal.note_score, score)\n",
        "            pass\n",
    ),
    "scores of an earlier life are not said": (
        "konsil.node.study",
        "        self.scoring.take_up()\n",
        "",
    ),
    "the ledger's journal waits for the disk now and then only": (
        "konsil.ledger.journal",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=NORMAL",
    ),
    "the operator tells entries before they are written": (
        "konsil.ledger.local.operator",
        """                try:
                    await self._replica.in_worker(partial(self._replica.journal.append, entries))
""",
        """                self._replica.publish(entries, batch[-1].state)
                try:
                    await self._replica.in_worker(partial(self._replica.journal.append, entries))
""",
    ),
    "a chunk that came is not checked": (
        "konsil.node.pull",
        "                await in_thread(partial(check_leaf, into, leaf, index=index))\n",
        "",
    ),
    "a manifest that came is not checked": (
        "konsil.node.pull",
        """                manifest.require(digest)
""",
        """""",
    ),
    "everybody may read everything": (
        "konsil.node.study",
        "        return digest in readable(self.study, peer)\n",
        "        return True\n",
    ),
    "nobody may read anything": (
        "konsil.node.study",
        "        return digest in readable(self.study, peer)\n",
        "        return False\n",
    ),
    "saved models are dropped though they are needed": (
        "konsil.node.models",
        "            if manifest.stem in needed:\n                continue\n",
        "",
    ),
    "a merge is accepted before it is on disk": (
        "konsil.core.round.promises",
        """        case Initialise(digest=digest) | Accept(digest=digest):
""",
        """        case Initialise(digest=digest):
""",
    ),
    "an update is committed before its outer state is on disk": (
        "konsil.node.study",
        """            await self.outer.make_durable(call.start)
""",
        """            pass
""",
    ),
    "who cannot be reached is not reported": (
        "konsil.node.study",
        """            self.post(machine.failed(effect, missing))
""",
        """            self.post(Failed(effect))
""",
    ),
    "audits find nothing": (
        "konsil.node.bench",
        "            if await self.is_wrong(index, model.manifest.leaves[index]):\n",
        "            if False:\n",
    ),
    "a stopped study puts its model aside": (
        "konsil.node.rest",
        " and not self._closed:",
        ":",
    ),
    "an update is forgotten once it is committed": (
        "konsil.core.round.keeping",
        """    if state.update is not None and study.phase not in {"finished", "failed"}:
        hold.add(state.update.digest)
""",
        """""",
    ),
    "a merge is taken by its digest alone": (
        "konsil.core.round.goals",
        "    completed = state.completed == (current.number, current.attempt, current.digest)\n",
        "    completed = True\n",
    ),
}

PLANS = {
    "an update is committed before its outer state is on disk": "a-full-disk-beside-an-outer-optimiser",
    "a merge is taken by its digest alone": "a-leader-publishes-what-all-hold",
}
"""Where a bug needs what few universes have, a plan in ``found/nodes``: it is tried, then with other seeds."""


def plant(module, old, new, plan, count):
    command = [sys.executable, str(PLANT), json.dumps([module, old, new, plan, count])]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_found(bug):
    ran = plant(*MUTANTS[bug], PLANS.get(bug, ""), WITHIN)
    assert ran.returncode == 0, ran.stderr
    after, what = json.loads(ran.stdout)
    assert after > 0, f"{WITHIN} universes went well although {bug}"
    assert what


def test_a_bug_whose_place_is_gone_is_not_taken_for_one_that_was_found():
    ran = plant("konsil.node.study", "no such text", "", "", 1)
    assert ran.returncode != 0
    assert "0 times, not once" in ran.stderr


def test_a_bug_that_is_planted_twice_is_refused():
    ran = plant("konsil.node.study", "self", "", "", 1)
    assert ran.returncode != 0
    assert "times, not once" in ran.stderr


def test_a_bug_in_what_no_world_runs_is_refused():
    ran = plant("konsil.session.swarm", "class Swarm", "class Swarm", "", 1)
    assert ran.returncode != 0
    assert "is not imported by a world" in ran.stderr
