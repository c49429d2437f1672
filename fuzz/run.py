"""Fuzzes Konsil's parsers: fuzz/run.py TARGET|GROUP... [--seconds N | --runs N] [--seed N]

    fuzz/run.py --list                  which targets there are
    fuzz/run.py card --seconds 300      coverage-guided (atheris), until the time is up or something breaks
    fuzz/run.py peers --runs 500        every target of a group, the same inputs for the same --seed
    fuzz/run.py card --replay FILE...   these inputs alone, with time and memory measured

Inputs that once broke something (fuzz/corpus/TARGET/) are run first. One that breaks something new is left in
--found, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

MEMORY_BYTES = 1 << 30
"""What a target's process may take beyond what it has at its start: more is a MemoryError, and a finding."""

INSTRUMENTED = ("konsil", "tomllib")
LACKING = 3
"""Exit status where coverage-guided fuzzing does not run here."""


def main() -> int:
    """Run what the command line asks for."""
    asked = _parsed()
    sys.path.insert(0, str(Path(__file__).parent))
    warnings.simplefilter("error")
    guided = not (asked.list or asked.replay) and importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris  # noqa: PLC0415 - it is not everywhere, and must be there before what it watches

        with atheris.instrument_imports(include=list(INSTRUMENTED)):
            from table import GROUPS, TARGETS  # noqa: PLC0415
    else:
        from table import GROUPS, TARGETS  # noqa: PLC0415
    if asked.list:
        for group, targets in GROUPS.items():
            print(group, *(f"  {target.name:12s} {target.about}" for target in targets), sep="\n")
        return 0
    names = [
        name
        for word in asked.targets
        for name in ([t.name for t in GROUPS[word]] if word in GROUPS else [word])
    ]
    unknown = sorted(set(names) - set(TARGETS))
    if unknown or not names:
        print(f"No such target: {', '.join(unknown) or 'none was named'}. See --list.", file=sys.stderr)
        return 2
    import structlog  # noqa: PLC0415
    import world  # noqa: PLC0415

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    world.scratch()  # before the first child, so that it goes with this process
    broken = 0
    for name in names:
        broken += not _in_child(
            lambda name=name: _replay(TARGETS[name], asked.replay or TARGETS[name].known())
        )
        if guided:
            broken += not _in_child(lambda name=name: _fuzz(TARGETS[name], asked))
    if not guided and not asked.replay:
        print("Replayed only: atheris is not here, so nothing new was tried.", file=sys.stderr)
        return 1 if broken else LACKING
    return 1 if broken else 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, default=0, help="inputs for each target, in place of --seconds")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--found", type=Path, default=None, help="where inputs that break something are left")
    parser.add_argument("--corpus", type=Path, default=None, help="keeps what was learnt between two runs")
    parser.add_argument("--replay", type=Path, nargs="+", default=[])
    return parser.parse_args()


def _in_child(work: object) -> bool:
    """Each in a process of its own: the engine ends the one it is in, and what is left behind is gone."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return status == 0
    try:
        work()  # type: ignore[operator]
    except SystemExit as ended:
        os._exit(1 if ended.code else 0)
    except BaseException:  # noqa: BLE001 - the child must never go on as if it were the parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _replay(target: object, paths: Iterable[Path]) -> None:
    from target import Target  # noqa: PLC0415 - after the path is set

    assert isinstance(target, Target)  # noqa: S101 - for the type checker
    paths = list(paths)
    through = [target.timed(seed) for seed in target.seeds()]
    if not any(through):
        raise AssertionError(f"{target.name}: none of its seeds is let through, so nothing behind is tried")
    for path in paths:
        try:
            target.measured(path.read_bytes())
        except BaseException as error:
            error.add_note(f"{target.name}: replaying {path}")
            raise
    print(f"{target.name}: {len(paths)} known inputs replayed", flush=True)


def _fuzz(target: object, asked: argparse.Namespace) -> NoReturn:
    import atheris  # noqa: PLC0415 - see above
    import world  # noqa: PLC0415
    from mutate import changed  # noqa: PLC0415
    from target import Target  # noqa: PLC0415

    assert isinstance(target, Target)  # noqa: S101 - for the type checker
    folder = asked.corpus / target.name if asked.corpus else world.scratch() / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    found = asked.found or Path.cwd()
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_len={target.max_bytes}",
        f"-artifact_prefix={found}/{target.name}-",
        f"-timeout={max(10, int(4 * target.limit_s))}",
        "-rss_limit_mb=3000",
        "-verbosity=0" if asked.runs else "-print_final_stats=1",
        *([f"-seed={asked.seed}"] if asked.seed else []),
        f"-atheris_runs={asked.runs}" if asked.runs else f"-max_total_time={asked.seconds}",
    ]

    def mutator(data: bytes, limit: int, seed: int) -> bytes:
        return changed(target.shape, data, seed, limit, atheris.Mutate)

    def one(data: bytes) -> None:
        try:
            target.timed(data)
        except BaseException:
            place = found / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            place.write_bytes(data)
            print(f"{target.name}: broken by {place}", file=sys.stderr, flush=True)
            raise

    target.timed(target.seeds()[0])  # caches are filled before memory is bounded
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    atheris.Setup(["konsil-fuzz", str(folder), *options], one, custom_mutator=mutator)
    atheris.Fuzz()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
