"""Real swarms for tests: nodes and training scripts as processes, all ended when the test ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from konsil.core.rules import Study, StudySettings
from konsil.evaluation.loopback import LoopbackSwarm

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE_S = 300.0
"""For a whole example on a busy machine: frameworks alone take many seconds to be imported four times."""


def data_folder(name: str) -> Path:
    """The folder with the real data sets, one of which is needed; without it skip, but never in CI."""
    folder = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).is_dir():
        problem = f"NOT TESTED: the data set {name} is not at {folder}; set KONSIL_DATA to its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    return folder


class Trainer:
    """A training script that runs; its words as they come."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log.open("wb")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.words: list[dict[str, Any]] = []

    def next(self) -> dict[str, Any] | None:
        """The next word; None once the script has ended. The test's own time limit bounds the wait."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None
        word: dict[str, Any] = json.loads(line)
        self.words.append(word)
        return word

    def until(self, event: str, round_number: int = 0) -> dict[str, Any]:
        """Read until this event (of this round or later)."""
        while (word := self.next()) is not None:
            if word["event"] == event and word.get("round", 0) >= round_number:
                return word
        raise AssertionError(f"ended before {event!r}: {self.words}\n{Path(self.log.name).read_text()}")

    def end(self) -> list[dict[str, Any]]:
        """Read to the end; all words."""
        while self.next() is not None:
            pass
        self.process.wait(30)
        return self.words

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


class Site:
    """A real swarm with training scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.swarms: list[LoopbackSwarm] = []
        self.trainers: list[Trainer] = []

    def swarm(self, *members: str, **options: Any) -> LoopbackSwarm:
        swarm = LoopbackSwarm(self.root, members, **options)
        self.swarms.append(swarm)
        return swarm

    def train(
        self,
        swarm: LoopbackSwarm,
        study: str,
        member: str,
        number: float,
        *options: str,
        script: str = "member.py",
    ) -> Trainer:
        socket = swarm.directory(member) / "session.sock"
        path = Path(__file__).with_name(script)
        command = [sys.executable, str(path), study, str(socket), str(number), *options]
        trainer = Trainer(command, self.root / f"training-{member}-{len(self.trainers)}.log")
        self.trainers.append(trainer)
        return trainer

    def example(
        self, name: str, members: tuple[str, ...], settings: StudySettings, *arguments: str, **env: str
    ) -> tuple[list[list[str]], Study]:
        """Run a script of the examples at every member, each with its own node, until all have ended.

        Args:
            name: the script's file name.
            members: its process gets its place among them, their number, and ``arguments`` as arguments.
            settings: of the study that all agree to.

        Returns:
            What each script printed, in lines, and the study as it stands on the ledger at the end.
        """
        swarm = self.swarm(*members)
        swarm.start()
        swarm.propose(settings)
        scripts = []
        for place, member in enumerate(members):
            log = (self.root / f"{member}.err").open("wb")
            scripts.append(
                subprocess.Popen(
                    [sys.executable, str(EXAMPLES / name), str(place), str(len(members)), *arguments],
                    env=os.environ
                    | {"KONSIL_DIR": str(swarm.directory(member)), "OMP_NUM_THREADS": "1"}
                    | env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
            log.close()
        try:
            said = [script.communicate(timeout=EXAMPLE_S)[0].splitlines() for script in scripts]
        finally:
            for script in scripts:
                script.kill()
                script.wait()
        for member, script in zip(members, scripts, strict=True):
            assert script.returncode == 0, (self.root / f"{member}.err").read_text()[-4000:]
        return said, swarm.control(members[0]).state().studies[settings.name]


@pytest.fixture
def examples() -> Path:
    return EXAMPLES


@pytest.fixture
def data() -> Any:
    """A function from a data set's name to the folder that it is in."""
    return data_folder


@pytest.fixture
def site() -> Iterator[Site]:
    # Unix sockets need a short path, and pytest's own temporary folders are long.
    root = Path(tempfile.mkdtemp(prefix="konsil-"))
    site = Site(root)
    try:
        yield site
    finally:
        for trainer in site.trainers:
            trainer.close()
        for swarm in site.swarms:
            swarm.close()
        shutil.rmtree(root)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) { return atol(getenv("KONSIL_TEST_SHIFT_S")); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += shift();
    return result;
}
time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

#ifdef __x86_64__
static long shift_s;

static int shifted(clockid_t clock, struct timespec *now) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_clock_gettime), "D"((long)clock), "S"(now)
                     : "rcx", "r11", "memory");
    if (clock == CLOCK_REALTIME) now->tv_sec += shift_s;
    return (int)result;
}

__attribute__((constructor)) static void shift_for_go(void) {
    if (strcmp(program_invocation_short_name, "cometbft")) return;
    shift_s = shift();
    unsigned char *base = (unsigned char *)getauxval(AT_SYSINFO_EHDR);
    Elf64_Ehdr *head = (Elf64_Ehdr *)base;
    Elf64_Phdr *part = (Elf64_Phdr *)(base + head->e_phoff);
    Elf64_Dyn *dynamic = 0;
    Elf64_Sym *symbols = 0;
    const char *names = 0;
    for (int i = 0; i < head->e_phnum; i++)
        if (part[i].p_type == PT_DYNAMIC) dynamic = (Elf64_Dyn *)(base + part[i].p_offset);
    for (Elf64_Dyn *each = dynamic; each->d_tag != DT_NULL; each++) {
        if (each->d_tag == DT_SYMTAB) symbols = (Elf64_Sym *)(base + each->d_un.d_ptr);
        if (each->d_tag == DT_STRTAB) names = (const char *)(base + each->d_un.d_ptr);
    }
    for (Elf64_Sym *each = symbols; (const char *)each < names; each++) {
        if (strcmp(names + each->st_name, "__vdso_clock_gettime")) continue;
        unsigned char *code = base + each->st_value;
        unsigned char jump[12] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0};
        void *to = (void *)shifted;
        memcpy(jump + 2, &to, 8);
        uintptr_t page = (uintptr_t)code & ~4095UL;
        if (mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) abort();
        memcpy(code, jump, sizeof jump);
        mprotect((void *)page, 8192, PROT_READ | PROT_EXEC);
    }
}
#endif
"""
"""For a process's C libraries too, such as OpenSSL, which looks at certificates' dates; and for CometBFT: Go
asks the kernel's shared page, in which the answer is replaced."""

CLOCK_OF_PYTHON = """
import os, time
_real, _shift = time.time, int(os.environ["KONSIL_TEST_SHIFT_S"])
time.time = lambda: _real() + _shift
"""


@pytest.fixture
def wrong_clock(site: Any) -> Callable[[int], dict[str, str]]:
    """A function from seconds to the environment of a process whose clock is ahead by so many."""
    compiler = shutil.which("cc")
    if compiler is None:  # then Python's own clock at least
        (site.root / "clock").mkdir()
        (site.root / "clock" / "sitecustomize.py").write_text(CLOCK_OF_PYTHON)
        variable = {"PYTHONPATH": str(site.root / "clock")}
    else:
        source, library = site.root / "clock.c", site.root / "clock.so"
        source.write_text(CLOCK)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        variable = {"LD_PRELOAD": str(library)}
    return lambda seconds: variable | {"KONSIL_TEST_SHIFT_S": str(seconds)}
