"""What the wall costs: parameters out of a training process and a merge back into it, against a bare memcpy.

    python benchmarks/wall.py --mb 100            # named numpy arrays
    python benchmarks/wall.py --mb 100 --torch    # a PyTorch module on the CPU
    python benchmarks/wall.py --mb 100 --torch --device cuda

Out: check that all is finite, write into a memory file, seal it. In: map a sealed file, check its layout,
copy into the model. Both copy once; everything above 2 x memcpy is the wall's price. No node and no network:
the descriptor's way over the socket is measured apart, as a round trip to a door in a thread.

With a device, its bare copies to the host and back are measured too: tensor by tensor, from and to ordinary
memory, as the wall makes them, and from and to pinned memory, as is the fastest that there is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from konsil.core.parameters import check_finite, views
from konsil.core.wall import ToldModel, Update
from konsil.learners import learner_for
from konsil.wall.door import Door, Visitor
from konsil.wall.layout import read_arrays, seal_arrays
from konsil.wall.line import Line
from konsil.wall.memory import open_sealed

TENSORS = 50  # as many as a small network has; the wall's price hardly depends on it


def best_s(repeats: int, work: Callable[[], object]) -> float:
    """The fastest of several runs: what the machine can do when nothing else disturbs it."""
    times = []
    for _ in range(repeats):
        begin_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin_s)
    return min(times)


def round_trip_s(repeats: int, fd: int) -> float:
    """A descriptor to a door and back, with the words around it."""

    async def echo(visitor: Visitor) -> None:
        while True:
            _, received = await visitor.receive()
            assert received is not None
            with open_sealed(received) as sealed:
                await visitor.send(ToldModel(study="bench", round=1, digest=""), sealed.fd)

    async def serve(path: Path, ready: threading.Event, stop: asyncio.Future[None]) -> None:
        async with Door(path, echo):
            ready.set()
            await stop

    with TemporaryDirectory() as directory:
        path, ready = Path(directory) / "s", threading.Event()
        loop = asyncio.new_event_loop()
        stop = loop.create_future()
        thread = threading.Thread(target=lambda: loop.run_until_complete(serve(path, ready, stop)))
        thread.start()
        ready.wait(5)
        try:
            with Line.connect(path, 5) as line:

                def there_and_back() -> None:
                    line.send(Update(round=1, base="", examples=1), fd)
                    _, back = line.receive(5)
                    assert back is not None
                    os.close(back)

                return best_s(max(repeats, 50), there_and_back)
        finally:
            loop.call_soon_threadsafe(stop.set_result, None)
            thread.join(5)
            loop.close()


def as_module(arrays: dict[str, np.ndarray], device: str) -> Any:
    """A PyTorch module whose parameters are these very arrays, or copies of them on a device."""
    import torch  # noqa: PLC0415 - only where it is asked for

    torch.set_num_threads(1)  # as numpy copies: one thread
    return torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.from_numpy(array).to(device)) for name, array in arrays.items()}
    )


def bare_copies(module: Any, repeats: int) -> dict[str, float]:
    """Seconds of copying a module's tensors from its device and back, with nothing around it."""
    import torch  # noqa: PLC0415 - as above

    tensors = [each.detach() for each in module.values()]
    ordinary = [each.to("cpu") for each in tensors]
    pinned = [each.pin_memory() for each in ordinary]

    def timed(copy: Callable[[torch.Tensor, torch.Tensor], object], there: list[torch.Tensor]) -> float:
        def all_of_them() -> None:
            for tensor, host in zip(tensors, there, strict=True):
                copy(tensor, host)
            torch.cuda.synchronize()

        return best_s(repeats, all_of_them)

    return {
        "copy_out_s": timed(lambda tensor, _: tensor.to("cpu"), ordinary),
        "copy_out_kept_s": timed(lambda tensor, host: host.copy_(tensor), ordinary),
        "copy_in_s": timed(lambda tensor, host: tensor.copy_(host), ordinary),
        "pinned_out_s": timed(lambda tensor, host: host.copy_(tensor, non_blocking=True), pinned),
        "pinned_in_s": timed(lambda tensor, host: tensor.copy_(host, non_blocking=True), pinned),
    }


def measure(mb: int, repeats: int, *, torch: bool, device: str) -> dict[str, float]:
    """Seconds of each part; ``mb`` in units of 1,000,000 bytes."""
    size = mb * 1_000_000 // 4 // TENSORS
    random = np.random.default_rng(1)
    model = {f"layer{n:02}": random.standard_normal(size, dtype=np.float32) for n in range(TENSORS)}
    target = {name: np.zeros_like(array) for name, array in model.items()}
    given, taking = (as_module(each, device) if torch else each for each in (model, target))
    learner, receiver = learner_for(given), learner_for(taking)
    wait = synchronise(device)
    schema = learner.schema()

    def memcpy() -> None:
        for name, array in model.items():
            np.copyto(target[name], array)

    def out() -> None:
        seal_arrays(schema, learner.parameters()).close()

    sealed = seal_arrays(schema, learner.parameters())

    def load() -> None:
        with open_sealed(os.dup(sealed.fd)) as received:
            _, data = read_arrays(received, schema)
            receiver.load(views(schema, data))
            wait()

    with sealed:
        found = {
            "memcpy_s": best_s(repeats, memcpy),
            "out_s": best_s(repeats, out),
            "finite_check_s": best_s(repeats, lambda: check_finite(schema, read_arrays(sealed, schema)[1])),
            "in_s": best_s(repeats, load),
            "round_trip_s": round_trip_s(repeats, sealed.fd),
        }
    for name, array in receiver.parameters().items():
        assert np.array_equal(model[name], np.asarray(array)), "what came in is not what went out"
    return found | (bare_copies(given, repeats) if device != "cpu" else {})


def synchronise(device: str) -> Callable[[], None]:
    """What waits until a device has done all that it was given."""
    if device == "cpu":
        return lambda: None
    import torch  # noqa: PLC0415 - as above

    return torch.cuda.synchronize


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch", action="store_true", help="a PyTorch module instead of numpy arrays")
    parser.add_argument("--device", default="cpu", help="where the module is, for example cuda")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = measure(chosen.mb, chosen.repeats, torch=chosen.torch, device=chosen.device)
    if chosen.json:
        print(json.dumps({"mb": chosen.mb, **found}))
        return
    kind = f"a PyTorch module on {chosen.device}" if chosen.torch else "numpy arrays"
    print(f"{kind}, {chosen.mb} MB, best of {chosen.repeats}")
    for name, label in (
        ("memcpy_s", "bare memcpy"),
        ("out_s", "out: check, write, seal"),
        ("finite_check_s", "  of it the finite check"),
        ("in_s", "in: map, check layout, load"),
        ("copy_out_s", "bare copy out, new memory"),
        ("copy_out_kept_s", "bare copy out, kept memory"),
        ("copy_in_s", "bare copy in"),
        ("pinned_out_s", "bare copy out, pinned"),
        ("pinned_in_s", "bare copy in, pinned"),
    ):
        if name not in found:
            continue
        print(f"  {label:28} {found[name] * 1e3:8.2f} ms  {chosen.mb / 1e3 / found[name]:6.2f} GB/s")
    both_s = found["out_s"] + found["in_s"]
    print(f"  {'out + in':28} {both_s * 1e3:8.2f} ms  {both_s / found['memcpy_s']:6.2f} x memcpy")
    print(f"  {'descriptor there and back':28} {found['round_trip_s'] * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
