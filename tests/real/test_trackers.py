"""The figures of a study in the real trackers, without any network."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from konsil.core.rules import Commitment, RoundRecord, ScoreRecord
from konsil.core.wall import Scored
from konsil.session import trackers
from konsil.session.accepted import AcceptedRound, figures

pytestmark = [
    pytest.mark.timeout(300),
    # The tools' own: they use what their dependencies have given up.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def accepted(number: int, scores: dict[str, ScoreRecord] | None = None) -> AcceptedRound:
    record = RoundRecord(
        number=number,
        attempt=1,
        base="",
        digest=str(number) * 64,
        roster={"berlin": Commitment("", 30, 0), "bonn": Commitment("", 10, 0)},
        weights={"berlin": 30, "bonn": 10},
        parts=(),
        absent={"lyon": "silent"},
        opened_s=100,
        merging_s=110,
        accepted_s=112,
        scores=scores or {},
    )
    return AcceptedRound.of(record)


def rounds() -> list[SimpleNamespace]:
    """What a swarm shows after each of two merges."""
    scores = {"berlin": ScoreRecord(30, 0.4, {"auc": 0.8}), "bonn": ScoreRecord(10, 0.8)}
    own = Scored(1, 30, 0.4, {"auc": 0.8})
    first, second = accepted(1), accepted(2)
    return [
        SimpleNamespace(last=first, before=None, figures=figures(first, own)),
        SimpleNamespace(last=second, before=accepted(1, scores), figures=figures(second, None)),
    ]


EXPECTED = {
    1: {
        "konsil/round": 1,
        "konsil/members": 2,
        "konsil/absent": 1,
        "konsil/examples": 40,
        "konsil/round_s": 12,
        "konsil/own_loss": 0.4,
        "konsil/own_auc": 0.8,
        "konsil/mean_loss": 0.5,
        "konsil/mean_auc": 0.8,
    },
    2: {
        "konsil/round": 2,
        "konsil/members": 2,
        "konsil/absent": 1,
        "konsil/examples": 40,
        "konsil/round_s": 12,
    },
}


def test_tensorboard_has_every_figure_at_its_round(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        follow = trackers.tensorboard(writer)
        for swarm in rounds():
            follow(swarm)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found.setdefault(event.step, {})[name] = pytest.approx(event.value, rel=1e-6)
    assert found == EXPECTED


def run(script: str, tmp_path, **env: str) -> str:
    """A script in a process of its own: these tools change a process for good."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)} | env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_mlflow_has_every_figure_at_its_round(tmp_path):
    script = """
        import mlflow
        from mlflow.tracking import MlflowClient
        from konsil.session import trackers
        from test_trackers import EXPECTED, rounds
        mlflow.set_tracking_uri("file:store")
        with mlflow.start_run() as run:
            follow = trackers.mlflow()
            for swarm in rounds():
                follow(swarm)
        client = MlflowClient("file:store")
        found = {}
        for name in client.get_run(run.info.run_id).data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                found.setdefault(metric.step, {})[name] = metric.value
        assert found == EXPECTED, found
        print("same")
    """
    assert run(script, tmp_path, MLFLOW_ALLOW_FILE_STORE="true", DO_NOT_TRACK="true").endswith("same\n")


def records(path: str) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format, after a header of 7 bytes."""
    data, at, whole = Path(path).read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32_768 - at % 32_768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""


def test_wandb_offline_has_every_figure_at_its_round(tmp_path):
    log = """
        import wandb
        from konsil.session import trackers
        from test_trackers import rounds
        with wandb.init(project="aml", dir=".") as run:
            follow = trackers.wandb(run)
            for swarm in rounds():
                follow(swarm)
    """
    read = """
        # In a process of its own: the tool writes its file to the end when the first one ends.
        import glob, json
        from wandb.proto.wandb_internal_pb2 import Record
        from test_trackers import EXPECTED, records
        (path,) = glob.glob("wandb/offline-run-*/*.wandb")
        found = {}
        for data in records(path):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                figures = {name: value for name, value in items.items() if name.startswith("konsil/")}
                found.setdefault(record.history.step.num, {}).update(figures)
        assert found == EXPECTED, found
        print("same")
    """
    run(log, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
    assert run(read, tmp_path).endswith("same\n")
