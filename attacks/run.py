"""Runs attacks, all of them or those that are named, against one swarm, one after the other.

attacks/run.py [NAME...]     a name is that of a script here, without .py

After each the others must still be served. Exit status 0 only if every one was stopped.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in {"run", "stage", "lying"})


def main(names: list[str]) -> int:
    """Run them; how many were not stopped."""
    sys.path.insert(0, str(HERE))
    from stage import open_stage  # noqa: PLC0415 - after the path is set

    failed = []
    with open_stage() as stage:
        for name in names or SCRIPTS:
            began_s = time.monotonic()
            print(name, flush=True)
            try:
                importlib.import_module(name).attack(stage)
                stage.serves_others()
            except Exception as error:  # noqa: BLE001 - the others are tried all the same
                failed.append(name)
                print(f"  NOT STOPPED: {type(error).__name__}: {error}", flush=True)
            else:
                print(f"  stopped, after {time.monotonic() - began_s:.1f} s", flush=True)
    print(f"{len(names or SCRIPTS) - len(failed)} attacks were stopped, {len(failed)} were not: {failed}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
