"""A hospital's training script for tests of scores: adds its number, says a given loss for each merge, saves.

scoring.py STUDY SOCKET NUMBER --losses 0.5,0.1,0.9 [--save FILE] [--resume PLACE] [--pause S] [--rounds N]
One JSON object a line on standard output: {"event": "joined" | "round" | "saved" | "failed", ...}
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
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("socket")
    parser.add_argument("number", type=float)
    parser.add_argument("--losses", default="")
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--save", default="")
    parser.add_argument("--resume")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=10**9, help="leave after the merge of this round")
    options = parser.parse_args()

    losses = [float(value) for value in options.losses.split(",") if value]
    model = {
        "weights": np.zeros(5000, np.float32),
        "head.bias": np.zeros(3),  # local where the study says so
        "steps": np.array(0),  # integers never travel
    }

    def evaluate(trained: dict[str, Any]) -> dict[str, float]:
        assert trained is model
        number = rounds[0] = rounds[0] + 1
        return {"examples": options.examples, "loss": losses[number - 1], "auc": 1 - losses[number - 1]}

    def on_round(swarm: konsil.Swarm) -> None:
        say("round", round=swarm.last.round, digest=swarm.last.digest, figures=swarm.figures)

    rounds = [0]
    try:
        with konsil.join(
            options.study,
            model,
            node=options.socket,
            evaluate=evaluate if losses else None,
            on_round=on_round,
            resume=options.resume,
        ) as swarm:
            say(
                "joined",
                member=swarm.member,
                round=swarm.round,
                steps=int(model["steps"]),
                head=model["head.bias"][0],
            )
            rounds[0] = max(rounds[0], swarm.round - 1)
            while not swarm.finished and swarm.round <= options.rounds:
                time.sleep(options.pause)  # the time that training takes
                model["weights"] += np.float32(options.number)
                model["head.bias"] += options.number
                model["steps"] += 1
                swarm.step(examples=1)
            if options.save:
                saved = swarm.save(options.save)
                say("saved", round=saved.round, digest=saved.digest, final=saved.final, why=saved.why)
            say(
                "ended",
                why=swarm.ended,
                steps=int(model["steps"]),
                head=model["head.bias"][0],
                digest=swarm.digest,
            )
    except konsil.KonsilError as error:
        say("failed", kind=error.kind, what=str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
