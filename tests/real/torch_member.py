"""A hospital's PyTorch training for tests, or one of its several processes under torch.distributed.

torch_member.py RANK SIZE RENDEZVOUS STUDY SOCKET [--examples N] [--fail RANK:STEP] [--nan STEP] [--wider RANK] ...
One JSON object a line on standard output: {"event": "joined" | "merged" | "ended" | "failed", ...}
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import konsil
from konsil.session import ranks

torch.set_num_threads(1)


def say(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def trace(module: nn.Module) -> str:
    """What travels of a module, as a digest. The first layer's BatchNorm stays local in these tests."""
    values = [value for name, value in sorted(module.state_dict().items()) if "running" not in name]
    return hashlib.sha256(
        b"".join(each.cpu().reshape(-1).view(torch.uint8).numpy() for each in values)
    ).hexdigest()


def held(module: nn.Module) -> dict[str, np.ndarray]:
    """What travels of a module, by name; bfloat16 as its bits."""
    values = {name: each.cpu() for name, each in module.state_dict().items() if each.is_floating_point()}
    return {
        name: (each.view(torch.int16) if each.dtype == torch.bfloat16 else each).numpy().copy()
        for name, each in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rank", type=int)
    parser.add_argument("size", type=int)
    parser.add_argument("rendezvous")
    parser.add_argument("study")
    parser.add_argument("socket")
    parser.add_argument("--examples", type=int, default=1)
    parser.add_argument(
        "--fail", default="", help="RANK:STEP at which that process raises an error of its own"
    )
    parser.add_argument("--linger", type=float, default=0.0, help="seconds that this process then lives on")
    parser.add_argument("--nan", type=int, default=0, help="step at which all processes' models hold a NaN")
    parser.add_argument("--frozen", type=int, default=-1, help="freeze a first layer made from this seed")
    parser.add_argument("--wider", type=int, default=-1, help="rank whose model has another shape")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", default="", help="folder for what the model held before and after merges")
    parser.add_argument("--away", type=float, default=0.0, help="how long the node may be away")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--impatient", action="store_true", help="words may take 3 s only")
    parser.add_argument("--times", type=int, default=1, help="how often the study is joined")
    options = parser.parse_args()
    if options.size > 1:
        where = f"file://{options.rendezvous}"
        limit = timedelta(seconds=60)
        distributed.init_process_group(
            "gloo", where, timeout=limit, rank=options.rank, world_size=options.size
        )
    if options.impatient:
        distributed.new_group = partial(distributed.new_group, timeout=timedelta(seconds=3))
        ranks.STILL_WAITING_S = 0.5
    try:
        for _ in range(options.times):
            train(options)
            gc.collect()
            kept = [len(list(Path("/proc/self", of).iterdir())) for of in ("fd", "task")]
            say("held", descriptors=kept[0], threads=kept[1])
    except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to know
        kind = error.kind if isinstance(error, konsil.KonsilError) else type(error).__name__
        say("failed", kind=kind, what=str(error))
        time.sleep(options.linger)
        raise SystemExit(1) from None


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(100 * options.rank + options.examples)  # every process begins elsewhere
    hidden = 4 + (options.wider == options.rank)
    model = nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1))
    if options.frozen >= 0:
        torch.manual_seed(options.frozen)
        model[0].reset_parameters()
        model[0].requires_grad_(False)
    model.to(options.device, getattr(torch, options.dtype))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    failing_rank, _, failing_step = options.fail.partition(":")
    with konsil.join(
        options.study, model, node=options.socket, timeout_s=options.away or None, optimizer=optimiser
    ) as swarm:
        facts = {"member": swarm.member, "kind": type(swarm).__name__, "mu": swarm.settings.prox}
        say("joined", round=swarm.round, digest=swarm.digest, trace=trace(model), **facts)
        wrapped = DistributedDataParallel(model) if options.size > 1 else model
        steps = 0
        while not swarm.finished:
            steps += 1
            time.sleep(options.pause)
            x = torch.randn(8, 3, dtype=getattr(torch, options.dtype)).to(options.device)
            loss = (wrapped(x) - x.sum(dim=1, keepdim=True) - options.examples).float().square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if failing_rank == str(options.rank) and int(failing_step) == steps:
                raise ValueError("the images of patient 7 cannot be read")
            if options.nan == steps:
                with torch.no_grad():
                    model[2].bias.fill_(torch.nan)
            before, values = trace(model), held(model) if options.keep else {}
            if swarm.step(examples=options.examples):
                last = swarm.last
                if options.keep:
                    place = Path(options.keep, f"{swarm.member}-{last.round}")
                    np.savez(place.with_suffix(".before.npz"), **values)
                    np.savez(place.with_suffix(".after.npz"), **held(model))
                say(
                    "merged",
                    round=last.round,
                    digest=swarm.digest,
                    trace=trace(model),
                    before=before,
                    members=dict(last.members),
                    mean=float(model[1].running_mean.sum()),
                )
                swarm.score(examples=3, loss=float(loss))
    say("ended", why=swarm.ended, digest=swarm.digest, trace=trace(model))


if __name__ == "__main__":
    main()
