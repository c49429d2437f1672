"""Simulated swarms of real models: what they learn, and that threads and processes give the same digests."""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec

import numpy as np
import pytest

import konsil
from konsil.errors import ConfigError
from konsil.evaluation.datasets import load
from konsil.evaluation.metrics import log_loss
from konsil.learners.sklearn import prepare

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(300),
    # A process that has imported PyTorch has grown, which loky takes for a leak: it replaces the process.
    pytest.mark.filterwarnings("default:A worker stopped while some jobs were given:UserWarning"),
]

SEED = 5
ROUNDS = 8
STUDY = {"every_epochs": 1, "rounds": ROUNDS}


def framework(name):
    """Import a framework; without it skip, but not in CI, where every check must run."""
    if find_spec(name) is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{name} is missing in CI")
        pytest.skip(f"NOT CHECKED: {name} is not installed")
    return pytest.importorskip(name)


@pytest.fixture(scope="module")
def hospitals():
    return load("breast-cancer", None, seed=0)


def sgd_member(hospital):
    """scikit-learn: logistic regression by stochastic gradient descent."""
    framework("sklearn")
    from sklearn.linear_model import SGDClassifier  # noqa: PLC0415 - only where scikit-learn is

    model = SGDClassifier(loss="log_loss", alpha=0.01, random_state=SEED)
    prepare(model, hospital.train.values.shape[1], classes=[0, 1])

    def train(model, work):
        for _ in range(work.epochs):
            model.partial_fit(hospital.train.values, hospital.train.labels)
        return len(hospital.train)

    def evaluate(model):
        found = model.predict_proba(hospital.validation.values)[:, 1]
        right = (found > 0.5) == hospital.validation.labels
        return {"examples": len(right), "accuracy": right.mean()}

    return konsil.Member(model, train, evaluate)


def torch_member(hospital):
    """PyTorch: a small network and an optimiser with momentum, which lives from round to round."""
    torch = framework("torch")
    torch.manual_seed(SEED)
    features = hospital.train.values.shape[1]
    model = torch.nn.Sequential(torch.nn.Linear(features, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    values = torch.tensor(hospital.train.values, dtype=torch.float32)
    labels = torch.tensor(hospital.train.labels, dtype=torch.float32)
    shuffle = torch.Generator().manual_seed(SEED)

    def train(model, work):
        loss = torch.nn.BCEWithLogitsLoss()
        for _ in range(work.epochs):
            for rows in torch.randperm(len(values), generator=shuffle).split(16):
                optimizer.zero_grad()
                loss(model(values[rows]).squeeze(1), labels[rows]).backward()
                optimizer.step()
        return len(values)

    return konsil.Member(model, train)


def probabilities(model, rows):
    """Of the positive class, by either kind of model."""
    if hasattr(model, "predict_proba"):
        return model.predict_proba(rows.values)[:, 1]
    torch = framework("torch")
    with torch.no_grad():
        return torch.sigmoid(model(torch.tensor(rows.values, dtype=torch.float32)).squeeze(1)).numpy()


def loss_at_all(model, hospitals):
    """The mean over hospitals of the log loss on their held-out patients."""
    losses = [log_loss(each.test.labels, probabilities(model, each.test)) for each in hospitals.values()]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("make", [sgd_member, torch_member])
def test_a_swarm_does_better_at_all_hospitals_than_hospitals_do_alone_on_the_average(make, hospitals):
    places = list(hospitals.values())
    run = konsil.simulate(lambda place: make(places[place]), members=list(hospitals), study=STUDY)
    alone = []
    for hospital in places:
        member = make(hospital)
        member.train(member.model, konsil.Work(1, epochs=ROUNDS))
        alone.append(loss_at_all(member.model, hospitals))
    together = [loss_at_all(model, hospitals) for model in run.models.values()]
    assert together == [together[0]] * len(together)
    assert together[0] < 0.8 * sum(alone) / len(alone)


def test_scores_of_a_real_model_get_better_and_stand_on_the_ledger(hospitals):
    places = list(hospitals.values())
    run = konsil.simulate(lambda place: sgd_member(places[place]), members=list(hospitals), study=STUDY)
    accuracy = run.scores["accuracy"]
    assert accuracy.shape == (ROUNDS, len(places))
    assert accuracy[-1].mean() > 0.9
    validation = sum(len(each.validation) for each in places)
    assert sum(score.examples for score in run.rounds[-1].scores.values()) == validation


# --- threads and processes --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["threading", "loky"])
@pytest.mark.parametrize("make", [sgd_member, torch_member])
def test_wherever_members_train_the_ledger_is_the_same(make, backend, hospitals):
    joblib = framework("joblib")
    places = list(hospitals.values())

    def simulated(jobs):
        return konsil.simulate(
            lambda place: make(places[place]), members=list(hospitals), study=STUDY | {"rounds": 3}, jobs=jobs
        )

    one = simulated(1)
    with joblib.parallel_config(backend=backend):
        several = simulated(2)
    assert several.state_digest == one.state_digest
    assert loss_at_all(several.models["hillview"], hospitals) == loss_at_all(
        one.models["hillview"], hospitals
    )


def where_am_i(place):
    def train(model, work):
        model["process"][:] = os.getpid()
        model["values"] += 1  # of a million: other processes must not get it read-only
        return 1

    return konsil.Member({"process": np.zeros(1), "values": np.zeros(1_000_000)}, train)


def test_members_train_in_this_process_unless_joblib_is_told_otherwise():
    joblib = framework("joblib")
    study = {"every_steps": 1, "rounds": 2, "local": ["process"]}
    here = konsil.simulate(where_am_i, members=2, study=study, jobs=2)
    assert {int(model["process"][0]) for model in here.models.values()} == {os.getpid()}
    with joblib.parallel_config(backend="loky"):
        there = konsil.simulate(where_am_i, members=2, study=study, jobs=2)
    assert os.getpid() not in {int(model["process"][0]) for model in there.models.values()}
    assert {model["values"].mean() for model in there.models.values()} == {2.0}
    assert not there.problems


def test_what_a_member_raises_in_another_process_comes_back_as_words():
    joblib = framework("joblib")

    def make(place):
        class Odd(Exception):
            def __init__(self, one, two):
                super().__init__(f"{one} and {two}")
                self.lock = threading.Lock()

        def train(model, work):
            if place == 1 and work.round == 2:
                raise Odd("this", "that")
            model["values"] += 1
            return 1

        return konsil.Member({"values": np.zeros(3)}, train)

    with joblib.parallel_config(backend="loky"):
        run = konsil.simulate(make, members=3, study={"every_steps": 1, "rounds": 2}, jobs=2)
    assert [problem.what for problem in run.problems] == ["Odd: this and that"]
    assert run.rounds[1].absent == {"member-2": "left"}


def test_a_member_that_cannot_travel_to_another_process_is_refused_with_what_to_do():
    joblib = framework("joblib")

    def make(place):
        lock = threading.Lock()

        def train(model, work):
            with lock:
                return 1

        return konsil.Member({"values": np.zeros(3)}, train)

    with (
        joblib.parallel_config(backend="loky"),
        pytest.raises(ConfigError, match=r"pickle.*in threads, the default, everything can"),
    ):
        konsil.simulate(make, members=2, study={"every_steps": 1}, jobs=2)


class Steered:
    """A learner that reaches into its training."""

    def __init__(self):
        self.values = np.zeros(3)

    def parameters(self):
        return {"values": self.values}

    def load(self, arrays):
        np.copyto(self.values, arrays["values"])

    def train_with(self, training):
        pass

    def begin_round(self):
        pass


def test_a_local_term_that_other_processes_would_lose_is_refused_there():
    joblib = framework("joblib")
    study = {"every_steps": 1, "rounds": 1, "prox": 0.1}
    assert konsil.simulate(lambda _: konsil.Member(Steered(), lambda *_: 1), study=study, jobs=2).rounds
    with joblib.parallel_config(backend="loky"), pytest.raises(ConfigError, match="`prox` or `scaffold`"):
        konsil.simulate(lambda _: konsil.Member(Steered(), lambda *_: 1), study=study, jobs=2)
