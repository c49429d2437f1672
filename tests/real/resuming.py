"""A hospital's PyTorch script for tests: trains with momentum, keeps its head local, says what it holds.

resuming.py STUDY SOCKET NUMBER [--resume PLACE] [--pause S]
One JSON object a line on standard output: {"event": "joined" | "merged" | "training" | "ended" | "failed", ...}
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch

import konsil


def held(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a script has beside the merge, exactly."""
    moments = [
        optimizer.state[parameter]["momentum_buffer"].tolist() if optimizer.state[parameter] else None
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    return {
        "head": model.head.weight.tolist(),
        "batches": int(model.norm.num_batches_tracked),
        "moments": moments,
        "learning_rate": optimizer.param_groups[0]["lr"],
    }


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(4, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.head = torch.nn.Linear(3, 1)  # the study's `local`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.body(x))))


def say(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("socket")
    parser.add_argument("number", type=float)
    parser.add_argument("--resume")
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    torch.manual_seed(int(options.number))
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    try:
        with konsil.join(
            options.study, model, node=options.socket, optimizer=optimizer, resume=options.resume
        ) as swarm:
            say("joined", round=swarm.round, **held(model, optimizer))
            while not swarm.finished:
                for start in range(0, 64, 16):
                    optimizer.zero_grad()
                    loss = torch.nn.functional.mse_loss(model(x[start : start + 16]), y[start : start + 16])
                    loss.backward()
                    optimizer.step()
                optimizer.param_groups[0]["lr"] *= 0.9  # as a schedule does
                say("training", round=swarm.round)
                time.sleep(options.pause)
                if swarm.epoch(examples=64):
                    say("merged", round=swarm.last.round, digest=swarm.digest, **held(model, optimizer))
            say("ended", why=swarm.ended, digest=swarm.digest)
    except konsil.KonsilError as error:
        say("failed", kind=error.kind, what=str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
