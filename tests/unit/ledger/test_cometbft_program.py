"""CometBFT as a child: scripts in its place that are of another version, hang, die, complain, or do not stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from konsil.errors import ConfigError, LedgerError
from konsil.ledger.cometbft import program as program_module
from konsil.ledger.cometbft.program import Supervisor, find, roll_back

SOON_S = 10


@pytest.fixture
def script(tmp_path):
    """Writes a program of a shell's commands; what is started notes its process id in ``pids``."""

    def write(commands, mode=0o700, name="cometbft"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\n{commands}\n")
        path.chmod(mode)
        return path

    yield write
    left = [pid for pid in _pids(tmp_path) if _runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a process was left behind"


def _pids(folder):
    path = folder / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- finding it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", ["0.38.25", "v0.38.25", "0.38.26+commit.abc", "0.38.100", "CometBFT version 0.38.25"]
)
async def test_the_right_version_is_found(script, said):
    path = script(f"echo '{said}'")
    assert await find(str(path)) == path


@pytest.mark.parametrize(
    "said", ["0.38.24", "0.37.15", "1.0.1", "0.39.0", "10.38.25", "", "what?", "\\377\\376"]
)
async def test_another_version_or_none_is_refused_by_name(script, said):
    with pytest.raises(ConfigError, match=r"needs 0\.38\.25") as caught:
        await find(str(script(f"printf '{said}'")))
    if said.startswith("0"):
        assert said in caught.value.what


async def test_it_is_found_by_its_name_on_the_path(script, tmp_path, monkeypatch):
    path = script("echo 0.38.25")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert await find("cometbft") == path


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program"])
async def test_a_program_that_is_missing_is_said_to_be(name):
    with pytest.raises(ConfigError, match="there is no program") as caught:
        await find(name)
    assert "[ledger] cometbft" in caught.value.do


async def test_a_file_that_may_not_be_run_is_no_program(script):
    with pytest.raises(ConfigError, match="there is no program"):
        await find(str(script("echo 0.38.25", mode=0o600)))


async def test_a_file_that_cannot_be_run_is_refused(tmp_path):
    path = tmp_path / "cometbft"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o700)
    with pytest.raises(ConfigError, match=r"cannot be run: .*[A-Za-z]"):
        await find(str(path))


async def test_one_that_hangs_is_ended_and_said_to(script, tmp_path, monkeypatch):
    monkeypatch.setattr(program_module, "VERSION_S", 0.3)
    path = script("exec sleep 100")
    with pytest.raises(ConfigError, match=r"cannot be run: no answer after 0\.3 s"):
        await find(str(path))
    assert [_runs(pid) for pid in _pids(tmp_path)] == [False]


async def test_nobody_waits_for_a_version_any_more_and_nothing_is_left(script, tmp_path):
    waiting = asyncio.create_task(find(str(script("exec sleep 100"))))
    while not _pids(tmp_path):  # noqa: ASYNC110 - a script cannot wake this loop
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not _runs(_pids(tmp_path)[0])


async def test_rolling_back_says_what_was_said(script, tmp_path):
    path = script('test "$1 $2" = "rollback --home" && echo "Rolled back to height 7 in $3"')
    assert await roll_back(path, tmp_path) == f"Rolled back to height 7 in {tmp_path}"
    with pytest.raises(LedgerError, match="cannot roll back: no state"):
        await roll_back(script("echo no state >&2; exit 1"), tmp_path)


async def test_rolling_back_that_hangs_is_ended(script, tmp_path, monkeypatch):
    monkeypatch.setattr(program_module, "STOP_S", 0.3)
    with pytest.raises(LedgerError, match="no answer after"):
        await roll_back(script("exec sleep 100"), tmp_path)
    assert not _runs(_pids(tmp_path)[-1])


# --- keeping it running ----------------------------------------------------------------------------


class Kept:
    """A supervisor whose starts can be waited for."""

    def __init__(self, path, home):
        self.prepared = 0
        self.starts: asyncio.Queue[int] = asyncio.Queue()
        self.supervisor = Supervisor(path, home, self.prepare, self.started)

    async def prepare(self):
        self.prepared += 1

    def started(self):
        self.starts.put_nowait(self.supervisor.process_id)

    async def until(self, held):
        while not held():  # noqa: ASYNC110 - a script cannot wake this loop
            await asyncio.sleep(0.01)


@pytest.fixture
async def kept(script, tmp_path, monkeypatch):
    monkeypatch.setattr(program_module, "FIRST_WAIT_S", 0.02)
    async with contextlib.AsyncExitStack() as stack:

        async def start(commands):
            made = Kept(script(commands), tmp_path)
            await stack.enter_async_context(asyncio.timeout(SOON_S))
            stack.push_async_callback(made.supervisor.close)
            made.supervisor.start()
            return made

        yield start


async def test_it_is_started_with_its_home_and_stopped_in_order(kept, tmp_path):
    made = await kept(f'echo "$@" > {tmp_path}/arguments; trap "echo stopped > {tmp_path}/end; exit 0" TERM; '
                      f"touch {tmp_path}/up; while :; do sleep 0.05; done")  # fmt: skip
    pid = await made.starts.get()
    assert made.supervisor.problem == ""
    await made.until((tmp_path / "up").exists)
    await made.supervisor.close()
    assert (tmp_path / "arguments").read_text().split() == ["start", "--home", str(tmp_path)]
    assert (tmp_path / "end").read_text() == "stopped\n"
    assert not _runs(pid)
    assert made.supervisor.process_id is None
    await made.supervisor.close()


async def test_it_is_not_in_this_process_session(kept):
    """Ctrl-C in a terminal is for the node, which stops it in order."""
    made = await kept("exec sleep 100")
    pid = await made.starts.get()
    assert os.getsid(pid) == pid


async def test_one_that_does_not_stop_is_killed(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(program_module, "STOP_S", 0.3)
    made = await kept(f'trap "" TERM; touch {tmp_path}/up; while :; do sleep 0.05; done')
    pid = await made.starts.get()
    await made.until((tmp_path / "up").exists)
    await made.supervisor.close()
    assert not _runs(pid)


async def test_one_that_ends_is_started_again_ever_later(kept, monkeypatch):
    waits = []
    sleep = asyncio.sleep

    async def noted(seconds):
        if seconds >= 0.02:
            waits.append(seconds)
        await sleep(0.001)

    monkeypatch.setattr(program_module, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(program_module.asyncio, "sleep", noted)
    made = await kept("echo last words; exit 3")
    for _ in range(5):
        await made.starts.get()
    assert waits[:4] == [0.02, 0.04, 0.08, 0.1]
    assert made.prepared == made.starts.qsize() + 5


async def test_its_end_is_told_with_its_last_words(kept):
    made = await kept('echo \'{"level":"error","_msg":"cannot open","why":"disk","ts":"0"}\'; exit 3')
    await made.until(lambda: made.supervisor.problem)
    assert made.supervisor.problem == (
        "CometBFT ended with status 3 and is started again. Its last words: cannot open (why: disk)"
    )


async def test_a_restart_is_at_once_and_no_problem(kept, monkeypatch):
    monkeypatch.setattr(program_module, "FIRST_WAIT_S", 60.0)
    made = await kept("exec sleep 100")
    first = await made.starts.get()
    made.supervisor.restart()
    second = await made.starts.get()
    assert first != second
    assert (made.supervisor.problem, made.prepared) == ("", 2)


async def test_one_that_does_not_stop_for_a_restart_is_killed(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(program_module, "STOP_S", 0.3)
    made = await kept(f'trap "" TERM; touch {tmp_path}/up; while :; do sleep 0.05; done')
    first = await made.starts.get()
    await made.until((tmp_path / "up").exists)
    made.supervisor.restart()
    assert await made.starts.get() != first
    assert not _runs(first)


@pytest.mark.parametrize(
    ("words", "diverged"),
    [("wrong Block.Header.AppHash. Expected A, got B", True), ("disk I/O error", False)],
)
async def test_one_that_lives_and_cannot_go_on_is_noticed(kept, words, diverged):
    made = await kept(f"echo 'CONSENSUS FAILURE!!! {words}'; exec sleep 100")
    pid = await made.starts.get()
    await made.until(lambda: made.supervisor.problem)
    assert made.supervisor.diverged is diverged
    assert ("konsil ledger repair" in made.supervisor.problem) is diverged
    if diverged:
        assert _runs(pid)  # to be started again would change nothing
    else:
        assert await made.starts.get() != pid


async def test_a_line_without_end_stops_nothing(kept):
    made = await kept(
        "head -c 600000 /dev/zero | tr '\\0' x; echo; echo 'CONSENSUS FAILURE disk'; exec sleep 100"
    )
    await made.until(lambda: "disk" in made.supervisor.problem)


async def test_a_program_that_is_gone_is_told_and_tried_again(kept, tmp_path):
    made = await kept("exec sleep 100")
    await made.starts.get()
    path = tmp_path / "cometbft"
    path.rename(tmp_path / "away")
    made.supervisor.restart()
    await made.until(lambda: "cannot be started" in made.supervisor.problem)
    (tmp_path / "away").rename(path)
    await made.starts.get()
    assert made.supervisor.problem == ""


async def test_what_fails_once_it_has_started_leaves_no_process(kept, tmp_path):
    made = await kept("exec sleep 100")
    pid = await made.starts.get()
    seen = []

    def broken():
        seen.append(made.supervisor.process_id)
        raise LedgerError("The disk refuses.")

    made.supervisor._started = broken
    made.supervisor.restart()
    await made.until(lambda: len(seen) > 1)
    assert not _runs(pid)
    assert not _runs(seen[0])


async def test_closing_before_it_has_started_leaves_nothing(kept, tmp_path):
    made = await kept("exec sleep 100")
    await asyncio.sleep(0)
    await made.supervisor.close()
    assert not [pid for pid in _pids(tmp_path) if _runs(pid)]
