"""A hospital's training script for tests: adds its own number to every parameter, and says what it sees.

member.py STUDY SOCKET NUMBER [--elements N] [--pause S] [--examples N] [--after WORD] [--losses X,Y,...]
One JSON object a line on standard output: {"event": "joined" | "merged" | "ended" | "failed", ...}
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

import konsil


def say(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, "at_s": time.time(), **facts}) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("socket")
    parser.add_argument("number", type=float)
    parser.add_argument("--elements", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--examples", type=int, default=1)
    parser.add_argument("--after", default="inactive")
    parser.add_argument("--rounds", type=int, default=10**9, help="leave after this many merges")
    parser.add_argument("--losses", default="", help="the losses that it scores its first merges with")
    options = parser.parse_args()
    losses = [float(loss) for loss in options.losses.split(",") if loss]

    model = {"weights": np.zeros(options.elements, np.float32), "bias": np.zeros(3, np.float64)}
    try:
        with konsil.join(options.study, model, node=options.socket, after=options.after) as swarm:
            say("joined", member=swarm.member, round=swarm.round, digest=swarm.digest)
            merges = steps = 0
            while not swarm.finished and merges < options.rounds:
                time.sleep(options.pause)  # the time that training takes
                for name in model:
                    model[name] += options.number
                steps += 1
                if swarm.step(examples=options.examples):
                    merges += 1
                    last = swarm.last
                    say(
                        "merged",
                        round=last.round,
                        digest=last.digest,
                        value=float(model["weights"][0]),
                        members=dict(last.members),
                        absent=dict(last.absent),
                        steps=steps,
                    )
                    steps = 0
                    if losses:
                        swarm.score(examples=1, loss=losses.pop(0))
            say("ended", why=swarm.ended, digest=swarm.digest, value=float(model["bias"][-1]))
    except konsil.KonsilError as error:
        say("failed", kind=error.kind, what=str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
