"""CometBFT as a child of the node: found, its version checked, started, watched, stopped, started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from konsil.errors import ConfigError, LedgerError

NEEDED = (0, 38, 25)
"""The oldest release of the 0.38 line that is taken; the line has the ABCI that the application speaks."""

VERSION_S = 20.0
STOP_S = 15.0
"""How long CometBFT may take to stop in order before it is killed: it closes its databases."""

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
"""Between two starts: doubled from the first to the longest while it does not stay up."""

STEADY_S = 60.0
"""A run as long as this was no failure to start."""

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_LONGEST_LINE_BYTES = 256 * 1024
_CONSENSUS_FAILED = "CONSENSUS FAILURE"
_CLOCK_BEHIND = "too far in the future"
"""Its words for a block whose time is more than a minute ahead of this machine's clock. Such a block has the
votes of most members, so it is the clock that is wrong."""

_PANIC = "panic: "
"""How its last words begin when it falls; what comes after them is for those who read its source."""

_HASH_DIFFERS = ("AppHash", "app hash", "last_results_hash", "LastResultsHash")

_log = structlog.get_logger(__name__)


async def find(name: str) -> Path:
    """The program, once its version is seen to be right.

    Args:
        name: its path, or its name on PATH.

    Raises:
        ConfigError: not there, not to be run, or of another version.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"This swarm's ledger is kept by CometBFT, but there is no program {name!r}.",
            safe="Nothing was started.",
            do=f"Install CometBFT {_text(NEEDED)} or newer of the 0.38 line, and put it on PATH or name its "
            "path under `[ledger] cometbft` in node.toml.",
        )
    said = await _said(found, "version")
    match = _VERSION.search(said)
    version = tuple(int(part) for part in match.groups()) if match else ()
    if version[:2] != NEEDED[:2] or version < NEEDED:
        raise ConfigError(
            f"{found} is CometBFT {said.strip()[:40] or 'of an unknown version'}; this Konsil needs "
            f"{_text(NEEDED)} or newer of the 0.38 line.",
            safe="Nothing was started.",
            do="Install that version, or name another program under `[ledger] cometbft` in node.toml.",
        )
    return Path(found)


async def roll_back(program: Path, home: Path) -> str:
    """Take CometBFT's own state one block back, so that it applies that block again. What it says.

    Raises:
        LedgerError: it cannot.
    """
    try:
        status, said = await _run_through(
            str(program), "rollback", "--home", str(home), errors=asyncio.subprocess.STDOUT, limit_s=STOP_S
        )
    except OSError as error:
        status, said = 1, error.strerror or str(error)
    if status:
        raise LedgerError(
            f"CometBFT cannot roll back: {said.strip()[-400:]}",
            safe="This member's copy of the history was not changed.",
            do="Move all of `engine/data` away but priv_validator_state.json: peers have the blocks.",
        )
    return said.strip()


class Supervisor:
    """Keeps CometBFT running until it is closed.

    Attributes:
        problem: why it does not run or cannot go on, in a sentence; "" while all is well.
        last_words: the last line of its log.
        diverged: whether it stopped since its application's state is not what the others have.
    """

    def __init__(
        self, program: Path, home: Path, prepare: Callable[[], Awaitable[None]], started: Callable[[], None]
    ) -> None:
        """``prepare``: called before each start, writes what is read there. ``started``: called after it."""
        self._prepare = prepare
        self._program = program
        self._home = home
        self._started = started
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._at_once = False
        self.last_words = ""
        self.problem = ""
        self.diverged = False

    def start(self) -> None:
        """Start it, and keep it running."""
        self._keeping = asyncio.create_task(self._keep(), name="konsil-engine")

    @property
    def process_id(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def restart(self) -> None:
        """Stop it in order and start it again at once, since its settings have changed."""
        if self._process is not None and self._process.returncode is None:
            self._at_once = True
            self._ending = asyncio.create_task(_end(self._process), name="konsil-engine-end")

    async def close(self) -> None:
        """Stop it in order; kill it if that takes too long."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
            self._keeping = None

    async def _keep(self) -> None:
        wait_s = FIRST_WAIT_S
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await self._prepare()
                status = await self._run()
            except LedgerError as error:
                self.problem = str(error)
            except OSError as error:
                self.problem = f"CometBFT cannot be started: {error.strerror or error}."
            else:
                if self._at_once:
                    self._at_once = False
                    continue
                if not self.problem:
                    words = f" Its last words: {self.last_words}" if self.last_words else ""
                    self.problem = f"CometBFT ended with status {status} and is started again.{words}"
            _log.warning("the ledger's engine does not run", why=self.problem)
            if loop.time() - began_s > STEADY_S:
                wait_s = FIRST_WAIT_S
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _run(self) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            self._program,
            "start",
            "--home",
            self._home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LONGEST_LINE_BYTES,
            start_new_session=True,  # Ctrl-C in a terminal is for the node, which stops it in order
        )
        try:
            _log.info("the ledger's engine has started", pid=process.pid)
            self.problem, self.last_words, self.diverged, self._ending = "", "", False, None
            self._started()
            await self._read(process)
            return await process.wait()
        finally:
            await asyncio.shield(_end(process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Take in what it says, line by line, until it ends."""
        if process.stdout is None:
            raise AssertionError("its output is a pipe")
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line over the limit: the rest of it is read as the next
                continue
            if not line:
                return
            self._said(line.decode(errors="replace").strip())

    def _said(self, line: str) -> None:
        words = _words(line)
        if not words:
            return
        _log.debug("the ledger's engine says", words=words[:500])
        if self.last_words.startswith(_PANIC):
            return
        self.last_words = words[:500]
        if _CONSENSUS_FAILED in line or line.startswith(_PANIC):
            self._has_failed(line)

    def _has_failed(self, line: str) -> None:
        """It decides on nothing more, yet its process may stay: end it, so that it is started again."""
        self.diverged = any(word in line for word in _HASH_DIFFERS)
        if self.diverged:
            self.problem = (
                "This node's ledger is not what the other members have: its state differs. It takes no calls "
                "and follows nothing until it is repaired: stop the node and run `konsil ledger repair`."
            )
        elif _CLOCK_BEHIND in line:
            self.problem = (
                "This machine's clock is more than a minute behind those of the other members, so its node "
                "decides on no blocks and sees them late. Set the clock; nothing else is to be done."
            )
        else:
            self.problem = f"CometBFT cannot go on: {self.last_words}"
        _log.error("the ledger's engine cannot go on", why=self.problem, words=self.last_words)
        if not self.diverged and self._process is not None and self._ending is None:
            self._ending = asyncio.create_task(_end(self._process), name="konsil-engine-end")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _said(program: str, *arguments: str) -> str:
    try:
        _, said = await _run_through(
            program, *arguments, errors=asyncio.subprocess.DEVNULL, limit_s=VERSION_S
        )
    except OSError as error:
        raise ConfigError(
            f"{program} cannot be run: {error.strerror or error}.",
            safe="Nothing was started.",
            do="Name a program that this user may run under `[ledger] cometbft` in node.toml.",
        ) from error
    return said


async def _run_through(program: str, *arguments: str, errors: int, limit_s: float) -> tuple[int, str]:
    """Run a program to its end; its status and what it said.

    Raises:
        OSError: it cannot be run, or does not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), limit_s)
    except TimeoutError as error:
        raise TimeoutError(f"no answer after {limit_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode(errors="replace")


def _words(line: str) -> str:
    """What a line of its log says: the message and its facts."""
    try:
        told: dict[str, Any] = json.loads(line)
        words = str(told.pop("_msg", ""))
        facts = "; ".join(
            f"{key}: {value}" for key, value in told.items() if key not in {"level", "ts", "module", "stack"}
        )
    except (ValueError, AttributeError):
        return line
    return f"{words} ({facts})" if facts else words


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
