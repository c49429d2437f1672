"""What a person sees, in a real notebook and on a real terminal, while a real study goes on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
import threading

import nbformat
import pytest
from nbclient import NotebookClient

from konsil.core.rules import StudySettings

pytestmark = [
    pytest.mark.timeout(300),
    # The tools' own: they use what their dependencies have given up.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

CELL = """
    import numpy as np
    import konsil
    model = {{"weights": np.zeros(1000, np.float32), "bias": np.zeros(3)}}
    with konsil.join("aml", model, node={node!r}, evaluate=lambda _: {{"examples": 5, "loss": 0.25}}) as swarm:
        while not swarm.finished:
            model["bias"] += 1
            swarm.step(examples=1)
"""


@pytest.fixture
def swarm(site):
    made = site.swarm("berlin", "bonn")
    made.start()
    made.propose(StudySettings("aml", min_members=2, rounds=3, every_steps=4, silence_s=60))
    return made


def test_in_a_notebook_one_output_is_updated_and_shows_every_round(site, swarm):
    other = site.train(swarm, "aml", "bonn", 1)
    node = str(swarm.directory("berlin") / "session.sock")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(CELL.format(node=node)))]
    )
    NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    other.end()
    outputs = notebook.cells[0].outputs
    (output,) = [each for each in outputs if each.output_type == "display_data"]
    lines = output.data["text/plain"].splitlines()
    assert [line.split(":")[0] for line in lines] == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert all("2 of 2 hospitals, loss 0.25" in line for line in lines)
    assert "mean loss of round 1 0.25" in lines[1]
    assert output.data["text/html"].startswith("<pre>round 1 of 3")
    assert not [each for each in outputs if each.output_type == "stream"]


def _on_a_terminal(script: str) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.extend(data)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(200) == 0, seen.decode()
    reader.join(20)
    os.close(ours)
    return seen.decode()


def test_on_a_terminal_a_bar_runs_and_each_round_leaves_one_line(site, swarm):
    other = site.train(swarm, "aml", "bonn", 1)
    node = str(swarm.directory("berlin") / "session.sock")
    seen = _on_a_terminal(textwrap.dedent(CELL.format(node=node)))
    other.end()
    # What a terminal keeps: all that was not written over.
    kept = [line.rsplit("\x1b[K", 1)[-1] for line in seen.replace("\r\n", "\n").split("\n")]
    assert [line.split(",")[0] for line in kept if line] == [
        f"konsil: round {number} of 3: 2 of 2 hospitals" for number in (1, 2, 3)
    ]
    assert "konsil: round 1 of 3: training [#####...............]  25%" in seen
