"""A training script that is killed and started again goes on where it was: with the real framework and nodes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from konsil import fine_tune
from konsil.core.rules import StudySettings
from konsil.errors import ConfigError
from konsil.learners import LocalTraining, learner_for
from konsil.learners.fine_tune import _put_back_estimator
from konsil.session.after import AfterMerge
from konsil.session.distributed import _require_nothing_to_resume

pytestmark = pytest.mark.timeout(400)


def facts(word: dict) -> dict:
    return {name: word[name] for name in ("head", "batches", "moments", "learning_rate")}


def test_a_script_that_is_killed_in_the_middle_goes_on_with_its_head_its_counters_and_its_momentum(site):
    swarm = site.swarm("berlin", "bonn")
    swarm.start()
    swarm.propose(
        StudySettings(
            "aml", min_members=2, quorum=2, rounds=5, every_epochs=1, silence_s=200, local=("head.*",)
        )
    )
    place = site.root / "berlin-state"
    other = site.train(swarm, "aml", "bonn", 2, script="resuming.py")
    first = site.train(
        swarm, "aml", "berlin", 1, "--resume", str(place), "--pause", "0.5", script="resuming.py"
    )
    before = first.until("merged", 2)
    first.until("training", 3)
    first.kill()  # SIGKILL while it trains for round 3

    again = site.train(swarm, "aml", "berlin", 1, "--resume", str(place), script="resuming.py")
    joined = again.until("joined")
    assert joined["round"] == 3
    assert facts(joined) == facts(before)
    assert joined["moments"][0] is not None
    assert joined["learning_rate"] == pytest.approx(0.05 * 0.9**2)
    ends = [trainer.end()[-1] for trainer in (again, other)]
    assert [end["event"] for end in ends] == ["ended"] * 2
    study = swarm.control("bonn").state().studies["aml"]
    assert {end["digest"] for end in ends} == {study.accepted}
    assert [sorted(record.roster) for record in study.history] == [["berlin", "bonn"]] * 5
    assert again.words[-2]["head"] != other.words[-2]["head"]  # each kept its own

    # Without the file it would have begun with an empty optimiser and the head that it was built with.
    fresh = site.train(swarm, "aml", "berlin", 1, script="resuming.py")
    word = fresh.until("joined")
    assert word["batches"] == 0
    assert word["moments"][0] is None
    fresh.end()


# --- the optimisers ------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.body = torch.nn.Linear(4, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.head = torch.nn.Linear(width, 2)
        self.tied = torch.nn.Linear(4, width)
        self.tied.weight = self.body.weight

    def forward(self, x):
        return self.head(self.norm(self.body(x) + self.tied(x)))


OPTIMISERS = {
    "sgd": lambda each: torch.optim.SGD(each, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda each: torch.optim.Adam(each, lr=0.01),
    "adamw_amsgrad": lambda each: torch.optim.AdamW(each, lr=0.01, amsgrad=True),
    "rmsprop": lambda each: torch.optim.RMSprop(each, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda each: torch.optim.Adagrad(each, lr=0.01),
    "adadelta": torch.optim.Adadelta,
    "nadam": torch.optim.NAdam,
    "tensor_rate": lambda each: torch.optim.Adam(each, lr=torch.tensor(0.01)),
}


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    dtype = net.body.weight.dtype
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 4, generator=generator).to(dtype)).float().square().mean().backward()
        optimizer.step()


def learner(net, optimizer):
    return learner_for(net, ("head.*",), LocalTraining(optimizer))


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_bit_for_bit_as_if_it_had_never_stopped(name, dtype):
    torch.manual_seed(3)
    one = Net().to(dtype)
    first = OPTIMISERS[name](one.parameters())
    train(one, first, 3)
    kept = {key: np.array(array) for key, array in learner(one, first).local_state().items()}
    merge = {key: np.array(array) for key, array in learner(one, first).parameters().items()}
    assert not any(key.endswith("stays/tied.weight") for key in kept)  # it is the body's, which travels

    torch.manual_seed(4)
    other = Net().to(dtype)
    second = OPTIMISERS[name](other.parameters())
    resumed = learner(other, second)
    resumed.load(merge)
    resumed.load_local_state(kept)
    train(one, first, 5)
    train(other, second, 5)
    for (key, mine), its in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, its), key


def test_the_state_of_another_optimiser_or_model_is_refused_and_nothing_is_changed():
    one = Net()
    first = torch.optim.Adam(one.parameters())
    train(one, first, 2)
    kept = {key: np.array(array) for key, array in learner(one, first).local_state().items()}
    other = Net()
    before = copy.deepcopy(other.state_dict())
    for make, complaint in (
        (lambda: (other, torch.optim.SGD(other.parameters(), lr=0.1)), "no setting of this SGD"),
        (lambda: (other, torch.optim.Adam(other.head.parameters())), "holds no parameter"),
        (lambda: (other, None), "names none"),
        (lambda: (Net(5), torch.optim.Adam(Net(5).parameters())), "instead of"),
    ):
        net, optimizer = make()
        with pytest.raises(ConfigError, match=complaint):
            learner(net, optimizer).load_local_state(kept)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_an_optimiser_that_keeps_what_is_no_number_is_refused_by_name():
    net = Net()
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(8, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ConfigError, match="LBFGS keeps under"):
        learner(net, optimizer).local_state()


def test_several_processes_of_a_hospital_cannot_resume_from_the_state_of_one(tmp_path):
    with pytest.raises(ConfigError, match="trains in several"):
        _require_nothing_to_resume(AfterMerge(resume=tmp_path))
    _require_nothing_to_resume(AfterMerge())


def test_scaffolds_own_control_is_kept():
    net = Net()
    first = torch.optim.SGD(net.parameters(), lr=0.1)
    one = learner_for(net, (), LocalTraining(first, scaffold=True))
    one.begin_round()
    train(net, first, 2)
    one.parameters()  # the update is handed over
    one.begin_round()
    own = {key: array for key, array in one.local_state().items() if "konsil.own/" in key}
    assert any(np.any(array) for array in own.values())
    other = Net()
    again = learner_for(other, (), LocalTraining(torch.optim.SGD(other.parameters(), lr=0.1), scaffold=True))
    again.begin_round()
    again.load_local_state({key: np.array(array) for key, array in one.local_state().items()})
    its = again.local_state()
    assert all(np.array_equal(its[key], array) for key, array in own.items())


# --- fine-tuning ---------------------------------------------------------------------------------


def test_a_module_is_put_back_with_its_frozen_parameters_and_counters():
    net = Net()
    net.tied.bias.requires_grad_(False)
    net.register_buffer("scratch", torch.zeros(2, dtype=torch.int64), persistent=False)
    before = {name: tensor.clone() for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    held = net.body.weight

    def tune(module):
        train(module, torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1), 3)
        module.scratch += 1
        with torch.no_grad():
            module.tied.bias += 1

    losses = iter([0.5, 0.6])
    done = fine_tune(net, tune, lambda _: {"loss": next(losses)})
    assert not done.kept
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        assert torch.equal(tensor, before[name]), name
    assert net.norm.num_batches_tracked == 0
    assert net.body.weight is held


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGDClassifier(loss="log_loss", random_state=1),
        lambda: MLPClassifier(hidden_layer_sizes=(4,), random_state=1, max_iter=5),
    ],
)
def test_an_estimator_is_put_back_with_its_counters_and_goes_on_as_if_it_had_not_been_tuned(make):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    labels = (rows[:, 0] > 0).astype(int)
    one = make()
    one.partial_fit(rows, labels, classes=[0, 1])
    other = copy.deepcopy(one)
    losses = iter([0.5, 0.6])
    done = fine_tune(one, lambda model: model.partial_fit(rows, 1 - labels), lambda _: {"loss": next(losses)})
    assert not done.kept
    one.partial_fit(rows, labels)
    other.partial_fit(rows, labels)
    assert np.array_equal(one.predict_proba(rows), other.predict_proba(rows))
    assert one.t_ == other.t_


def test_what_is_inside_of_a_pipeline_stays_the_object_that_it_is():
    rows = np.random.default_rng(0).normal(size=(40, 3))
    labels = (rows[:, 0] > 0).astype(int)
    pipeline = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=1))
    pipeline.fit(rows, labels)
    scaler, model = pipeline[0], pipeline[-1]
    expected = pipeline.predict_proba(rows)
    put_back = _put_back_estimator(pipeline)
    pipeline.fit(rows * 5, 1 - labels)
    assert not np.array_equal(pipeline.predict_proba(rows), expected)
    put_back()
    assert np.array_equal(pipeline.predict_proba(rows), expected)
    assert pipeline[0] is scaler
    assert pipeline[-1] is model


def test_a_better_estimator_is_kept():
    rows = np.random.default_rng(0).normal(size=(40, 3))
    labels = (rows[:, 0] > 0).astype(int)
    model = SGDClassifier(loss="log_loss", random_state=1)
    model.partial_fit(rows, 1 - labels, classes=[0, 1])
    done = fine_tune(
        model,
        lambda each: [each.partial_fit(rows, labels) for _ in range(20)],
        lambda each: {"accuracy": each.score(rows, labels)},
        metric="accuracy",
        mode="max",
    )
    assert done.kept
    assert done.after["accuracy"] > done.before["accuracy"]
    assert model.score(rows, labels) == done.after["accuracy"]
