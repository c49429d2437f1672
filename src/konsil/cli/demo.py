"""``konsil demo``: hospitals train one model together on this machine, and what that brings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from konsil.cli.common import WithExample, fail
from konsil.errors import ConfigError, KonsilError, StudyError

if TYPE_CHECKING:
    from konsil.evaluation.compare import Comparison
    from konsil.evaluation.demo import Outcome
    from konsil.evaluation.progress import Plan, Progress

REPORT = Path("konsil-demo/report.html")
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = 130
"""The status of a program that was stopped by Ctrl-C, for the shell."""


@click.command("demo", cls=WithExample)
@click.option(
    "--dataset",
    type=click.Choice(["breast-cancer", "leukaemia", "heart"]),
    help="What to learn.  [default: breast-cancer; with --data: leukaemia]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the data sets that do not come with scikit-learn. Also KONSIL_DATA.",
)
@click.option("--rounds", type=click.IntRange(1, 200), default=20, show_default=True, help="Merges.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Who is held out.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default=REPORT,
    show_default=True,
    help="The page that it writes.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Leave the members' directories there, to look at their ledgers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def demo(
    dataset: str | None,
    data: Path | None,
    rounds: int,
    seed: int,
    report: Path,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Watch hospitals train one model together, without a server and without moving a record.

    Every hospital is a node and a training process of its own, with its own patients, keys and mutual TLS,
    on this machine. At the end: each hospital alone, all together, all data in one place.
    """
    began_s = _began_s()
    try:
        from konsil.evaluation.progress import Plan  # noqa: PLC0415 - numpy; `--help` is faster without

        chosen = dataset or ("leukaemia" if data is not None else "breast-cancer")
        where = data or (Path(os.environ["KONSIL_DATA"]) if os.environ.get("KONSIL_DATA") else None)
        plan = Plan(chosen, where, rounds, seed, keep.absolute() if keep else None, began_s)
        _prepare(plan, report)
        outcome, comparison, progress = _run(plan, report, as_json=as_json)
        if as_json:
            click.echo(json.dumps(_facts(outcome, comparison, progress, report), indent=2))
        if outcome.problems:
            raise StudyError(
                " ".join(outcome.problems),
                safe=f"The report is at {report}.",
                do="This should not happen: please report it, with the output of the same with --json.",
            )
    except KonsilError as error:
        fail(error, as_json=as_json)
    except KeyboardInterrupt:
        click.echo("Stopped. All processes have ended and their directories are gone.", err=True)
        sys.exit(STOPPED)


demo.example = "konsil demo --data ~/konsil-data --keep ~/konsil-members"


def _run(plan: Plan, report: Path, *, as_json: bool) -> tuple[Outcome, Comparison, Progress]:
    from konsil.evaluation.processes import Processes  # noqa: PLC0415 - as above
    from konsil.evaluation.progress import Progress  # noqa: PLC0415 - as above

    progress = Progress(plan)
    with (
        _ends_in_order(),
        _workplace() as root,
        Processes(progress.hospitals, root / "training.log") as processes,
    ):
        # What this process needs, it imports while those import what they need.
        from konsil.cli import sentences  # noqa: PLC0415 - as above
        from konsil.cli.demo_view import watching  # noqa: PLC0415 - as above
        from konsil.evaluation.demo import Demo  # noqa: PLC0415 - as above

        with (
            watching(progress, as_json=as_json) as view,
            Demo(progress, processes, view.watch, sentences.of_call) as run,
            _in_peace(),
        ):
            outcome = run.run()
            from konsil.evaluation.report import write_report  # noqa: PLC0415 - matplotlib

            comparison = write_report(report, outcome.result)
            progress.finish("report", "end")
            view.watch(progress)
    view.show(outcome, comparison, report)
    return outcome, comparison, progress


def _prepare(plan: Plan, report: Path) -> None:
    """Find out what cannot work before anything is started."""
    from konsil.evaluation.datasets import require_files  # noqa: PLC0415 - as above

    _require_packages()
    require_files(plan.dataset, plan.data)
    if plan.keep is not None and plan.keep.exists() and any(plan.keep.iterdir()):
        raise ConfigError(
            f"{plan.keep} is there already and not empty.",
            safe="Nothing was started.",
            do="Name another place for --keep.",
        )
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder of the report, {report.parent}, cannot be made: {error.strerror}.",
            safe="Nothing was started.",
            do="Name another place: --report FILE.html.",
        ) from error


def _require_packages() -> None:
    from importlib.util import find_spec  # noqa: PLC0415 - only here

    lacking = [name for name in ("sklearn", "matplotlib", "jinja2") if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"The demo needs packages that are not installed: {', '.join(lacking)}.",
            safe="Nothing was started.",
            do="Install them: pip install 'konsil[report]'.",
        )


def _facts(outcome: Outcome, comparison: Comparison, progress: Progress, report: Path) -> dict[str, Any]:
    """The demo as one JSON document."""
    from konsil.evaluation.report import sentences  # noqa: PLC0415 - as above

    result = outcome.result
    plain = msgspec.to_builtins
    return {
        "summary": sentences(result, comparison)[0],
        "problems": list(outcome.problems),
        "report": str(report.absolute()),
        "timings": {
            "first_merge_s": result.first_merge_s,
            "last_merge_s": result.total_s,
            "total_s": round(progress.elapsed_s, 2),
            "steps_s": {step: round(at_s, 2) for step, at_s in progress.done.items()},
        },
        "verified": plain(outcome.verified),
        "comparison": plain(comparison),
        "result": plain(result),
    }


# --- beginning and end ---------------------------------------------------------------------------


def _began_s() -> float:
    """When Python began to start, on the monotonic clock.

    The system's own start time of a process does not tell: a script that sets up first may have become this
    program. What Python did until now was work, so its time is the processor's.
    """
    return time.monotonic() - time.process_time()


@contextmanager
def _workplace() -> Iterator[Path]:
    """A directory that is gone afterwards. Its path is short: Unix sockets are in it."""
    root = Path(tempfile.mkdtemp(prefix="konsil-demo-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """Take a request to end, or a closed terminal, as Ctrl-C, and the first of them only."""

    def stop(_number: int, _frame: object) -> None:
        _ignore()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _in_peace() -> Iterator[None]:
    """Once it ends, nothing disturbs the end: a Ctrl-C in the middle of it would leave processes behind."""
    try:
        yield
    finally:
        _ignore()


def _ignore() -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
