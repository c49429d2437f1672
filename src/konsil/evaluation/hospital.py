"""What the demo's training processes do: deal out rows, train at one hospital, train centrally, test.

A hospital's process reads its own hospital's rows and no others. Of the other hospitals it gets parameters
only: the merges from its node and, for the comparison at the end, their finished models.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

import konsil
from konsil.core.digest import Manifest, chunk_count, chunk_range, leaf, part_range
from konsil.core.parameters import pack
from konsil.errors import KonsilError
from konsil.evaluation import datasets, metrics, models
from konsil.evaluation.preparation import Hospital, Rows, Scale, measure, prepare_locally
from konsil.evaluation.processes import (
    Alone,
    Broken,
    Channel,
    Deal,
    Dealt,
    Ended,
    Entered,
    Merged,
    Order,
    Test,
    Tested,
    Train,
    TrainCentrally,
)
from konsil.evaluation.result import HospitalResult
from konsil.learners import learner_for

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

_PARTS = ("train", "validation", "test")


@dataclass
class _Here:
    """What a hospital's process keeps between orders."""

    raw: list[Hospital] = field(default_factory=list)
    swarm: list[MLPClassifier] = field(default_factory=list)


def serve(channel: Channel[Order]) -> int:
    """Carry out orders until the demo closes the channel; the exit status."""
    here = _Here()
    while True:
        orders = channel.read()
        if channel.ended:
            return 0
        for order in orders:
            try:
                _carry_out(order, channel, here)
            except KonsilError as error:
                channel.send(Broken(error.kind, error.what, error.safe, error.do))
                return 1
            except Exception as error:  # noqa: BLE001 - the demo is told, whatever it is
                traceback.print_exc()
                channel.send(Broken("Exception", f"{type(error).__name__}: {error}"))
                return 1


def _carry_out(order: Order, channel: Channel[Order], here: _Here) -> None:
    match order:
        case Deal():
            channel.send(deal(order))
        case Train():
            raw = read_rows(Path(order.rows))
            here.raw.append(raw)
            here.swarm.append(train(order, _prepared(raw), channel))
            alone = models.train(_prepared(raw).train, order.seed, order.epochs)
            write_arrays(Path(order.model), models.parameters(alone))
            channel.send(Alone())
        case TrainCentrally():
            train_centrally(order)
            channel.send(Alone())
        case Test():
            result = test(order, here.raw[-1], here.swarm[-1])
            channel.send(Tested(msgspec.json.encode(result).decode()))


# --- the rows ------------------------------------------------------------------------------------


def deal(order: Deal) -> Dealt:
    """Write every hospital's rows, as recorded, to a file that only its own process will read."""
    folder = Path(order.folder)
    counts = {}
    for name, hospital in datasets.load_raw(
        order.dataset, Path(order.data) if order.data else None, order.seed
    ).items():
        parts: tuple[Rows, ...] = (hospital.train, hospital.validation, hospital.test)
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for part, rows in zip(_PARTS, parts, strict=True):
            arrays |= {f"{part}_values": rows.values, f"{part}_labels": rows.labels}
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]  # a stub takes them for options
        counts[name] = (len(hospital.train), len(hospital.validation), len(hospital.test))
    return Dealt(counts)


def read_rows(path: Path) -> Hospital:
    """A hospital's rows as recorded."""
    with np.load(path, allow_pickle=False) as file:
        train, validation, test_ = (Rows(file[f"{part}_values"], file[f"{part}_labels"]) for part in _PARTS)
    return Hospital(path.stem, (), train, validation, test_)


def _prepared(raw: Hospital) -> Hospital:
    return prepare_locally({raw.name: raw})[raw.name]


# --- training ------------------------------------------------------------------------------------


def train(order: Train, hospital: Hospital, channel: Channel[Order]) -> MLPClassifier:
    """Take part in the study to its end: the three lines that a training script needs, and some words."""
    model = models.classifier(hospital.train.values.shape[1], order.seed)
    shuffle = np.random.default_rng([order.seed, order.place])
    with konsil.join(order.study, model, node=order.socket) as swarm:
        channel.send(Entered(time.monotonic()))
        while not swarm.finished:
            models.train_epoch(model, hospital.train, shuffle)
            if swarm.epoch(examples=len(hospital.train)) and swarm.last is not None:
                channel.send(Merged(swarm.last.round, time.monotonic()))
                _score(swarm, model, hospital.validation)
        n_parts = len(swarm.last.record.parts) if swarm.last is not None else 1
        channel.send(Ended(swarm.ended, digest_of(model, n_parts)))
    return model


def _score(swarm: konsil.Swarm, model: MLPClassifier, rows: Rows) -> None:
    """Say how the merge does on this hospital's validation patients."""
    probabilities = models.probabilities(model, rows)
    loss = metrics.log_loss(rows.labels, probabilities)
    if metrics.why_no_auc(rows.labels):
        swarm.score(examples=len(rows), loss=loss)
    else:
        auc = float(metrics.delong(rows.labels, probabilities).auc[0])
        swarm.score(examples=len(rows), loss=loss, auc=auc)


def digest_of(model: MLPClassifier, n_parts: int) -> str:
    """The digest of the parameters in a model, as the ledger has it of a merge of so many parts."""
    learner = learner_for(model)
    schema = learner.schema()
    data = bytearray(schema.data_bytes)
    pack(schema, learner.parameters(), memoryview(data))
    chunks = chunk_count(len(data))
    leaves = [leaf(data[slice(*chunk_range(index, len(data)))]) for index in range(chunks)]
    groups = (tuple(leaves[i] for i in part_range(part, n_parts, chunks)) for part in range(n_parts))
    return Manifest(schema.header, tuple(groups)).digest


def train_centrally(order: TrainCentrally) -> None:
    """Train on all rows in one place, prepared at each hospital and prepared together."""
    raw = {name: read_rows(Path(path)) for name, path in sorted(order.rows.items())}
    labels = np.concatenate([hospital.train.labels for hospital in raw.values()])
    scale = measure(np.concatenate([hospital.train.values for hospital in raw.values()]))
    local = prepare_locally(raw)
    for name, values, more in (
        ("central", [hospital.train.values for hospital in local.values()], ()),
        (
            "central_together",
            [scale.apply(hospital.train).values for hospital in raw.values()],
            (scale.median, scale.mean, scale.deviation),
        ),
    ):
        model = models.train(Rows(np.concatenate(values), labels), order.seed, order.epochs)
        write_arrays(Path(order.folder) / f"{name}.npz", [*models.parameters(model), *more])


# --- testing -------------------------------------------------------------------------------------


def test(order: Test, raw: Hospital, swarm: MLPClassifier) -> HospitalResult:
    """What every model says of the patients held out here."""
    hospital = _prepared(raw)
    held_out = hospital.test
    central_together, scale = read_model(Path(order.central_together), raw)
    if scale is None:
        raise ValueError(order.central_together)
    return HospitalResult(
        name=hospital.name,
        train_patients=len(hospital.train),
        train_positives=int(hospital.train.labels.sum()),
        validation_patients=len(hospital.validation),
        labels=tuple(int(label) for label in held_out.labels),
        local={
            name: _says(read_model(Path(path), raw)[0], held_out)
            for name, path in sorted(order.local.items())
        },
        swarm=_says(swarm, held_out),
        central=_says(read_model(Path(order.central), raw)[0], held_out),
        central_together=_says(central_together, scale.apply(raw.test)),
    )


def _says(model: MLPClassifier, rows: Rows) -> tuple[float, ...]:
    return tuple(float(p) for p in models.probabilities(model, rows))


# --- models as files -----------------------------------------------------------------------------


def write_arrays(path: Path, arrays: list[npt.NDArray[np.float64]]) -> None:
    """Arrays as a file, in order."""
    named: Mapping[str, npt.NDArray[np.float64]] = {str(place): array for place, array in enumerate(arrays)}
    np.savez(path, **named)  # type: ignore[arg-type]  # a stub takes them for options


def read_model(path: Path, rows: Hospital) -> tuple[MLPClassifier, Scale | None]:
    """A model from a file and, where one is with it, the scale that its rows must have."""
    model = models.classifier(rows.train.values.shape[1], 0)
    own = models.parameters(model)
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[str(place)] for place in range(len(file.files))]
    for array, values in zip(own, arrays, strict=False):
        np.copyto(array, values)
    more = arrays[len(own) :]
    return model, Scale(*more) if more else None
