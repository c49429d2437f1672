"""The Hugging Face callback in a real Trainer, without a node: what is counted, when it merges, what is scored."""

from __future__ import annotations

import gc
import weakref

import pytest

from konsil.callbacks import attendance as module
from konsil.core.rules.settings import StudySettings
from konsil.errors import StudyError
from konsil.learners import learner_for

torch = pytest.importorskip("torch", reason="NOT CHECKED: torch is not installed")
transformers = pytest.importorskip("transformers", reason="NOT CHECKED: transformers is not installed")
pytest.importorskip("accelerate", reason="NOT CHECKED: accelerate is not installed")

from konsil.callbacks.huggingface import SwarmCallback  # noqa: E402 - only where transformers is

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers gives advice as warnings


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Each ``train`` collects garbage: spare it the half a second for what the frameworks' modules hold."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


X = torch.linspace(-1, 1, 22 * 3).reshape(22, 3)
Y = (X.sum(dim=1, keepdim=True) > 0).float()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.began_with = []

    def forward(self, values, labels):
        if self.training:
            self.began_with.append(float(self.layer.bias.detach()))
        logits = self.layer(values)
        return {
            "loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, labels),
            "logits": logits,
        }


class Last:
    def __init__(self, number):
        self.round, self.members, self.absent = number, {"bonn": 1, "lyon": 1}, {}


class FakeSwarm:
    """Merges after so many steps or epochs: every parameter becomes the number of the round."""

    def __init__(self, model, options, every_steps=0, every_epochs=0, rounds=99, done=0):
        self.settings = StudySettings(name="aml", every_steps=1)
        self.model, self.options = model, options
        self.every_steps, self.every_epochs, self.rounds = every_steps, every_epochs, rounds
        self.last = Last(done) if done else None
        self.steps = self.epochs = 0
        self.said, self.scored = [], []
        self.learner = learner_for(model)

    @property
    def scored_last(self):
        return self.last.round in {number for number, *_ in self.scored}

    @property
    def finished(self):
        return self.last is not None and self.last.round >= self.rounds

    def step(self, examples):
        self.said.append(examples)
        self.steps += 1
        return self._merge(self.steps == self.every_steps)

    def epoch(self, examples=0):
        self.said.append(f"epoch {examples}")
        self.epochs += 1
        return self._merge(self.epochs == self.every_epochs)

    def _merge(self, due):
        if due:
            self.last = Last(1 if self.last is None else self.last.round + 1)
            self.steps = self.epochs = 0
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(self.last.round)
        return due

    def score(self, *, examples, loss=None, **metrics):
        self.scored.append((self.last.round, examples, round(loss, 4), sorted(metrics)))

    def close(self):
        self.said.append("closed")

    def leave(self):
        self.said.append("left")


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Train a model with the callback; gives the Trainer and the fake swarm."""

    def train(model=None, *more, callback=None, swarm=None, evaluated=0, **options):
        swarms = []

        def join(_study, joining, **join_options):
            swarms.append(FakeSwarm(joining, join_options, **(swarm or {})))
            return swarms[-1]

        monkeypatch.setattr(module, "join", join)
        data = [{"values": x, "labels": y} for x, y in zip(X, Y, strict=True)]
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
        if evaluated:
            quiet["eval_strategy"] = "epoch"
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            **(
                quiet
                | {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.0}
                | options
            ),
        )
        trainer = transformers.Trainer(
            model or Model(),
            arguments,
            train_dataset=data,
            eval_dataset=data[:evaluated] or None,
            callbacks=[callback or SwarmCallback("aml", node="here"), *more],
        )
        trainer.train()
        return trainer, swarms[-1]

    return train


def test_every_step_counts_with_the_true_size_of_its_batches(trained):
    _, swarm = trained()
    assert swarm.said == [8, 8, 6, "epoch 0", 8, 8, 6, "epoch 0", "closed"]
    assert swarm.options["node"] == "here"
    _, swarm = trained(gradient_accumulation_steps=2, num_train_epochs=1)
    assert swarm.said == [16, 6, "epoch 0", "closed"]


def test_evaluations_do_not_change_the_count(trained):
    _, swarm = trained(evaluated=5, eval_strategy="steps", eval_steps=1, num_train_epochs=1)
    assert swarm.said == [8, 8, 6, "epoch 0", "closed"]


def test_a_merge_in_the_middle_of_an_epoch_is_what_the_next_step_begins_with(trained):
    trainer, _ = trained(swarm={"every_steps": 2})
    assert trainer.model.began_with[2:] == [1, 1, 2, 2]


def test_the_study_ends_train_with_its_last_merge_in_the_model(trained):
    for swarm in ({"every_steps": 2, "rounds": 2}, {"every_epochs": 2, "rounds": 2}):
        trainer, seen = trained(num_train_epochs=50, learning_rate=1.0, evaluated=5, swarm=swarm)
        assert seen.last.round == 2
        assert seen.scored[-1][:2] == (2, 5)
        assert seen.said[-1] == "closed"
        assert {float(value) for value in trainer.model.layer.weight.flatten()} == {2.0}


def test_a_study_that_was_over_before_leaves_its_model_as_it_is(trained):
    model = Model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    _, seen = trained(model, num_train_epochs=50, learning_rate=1.0, swarm={"rounds": 3, "done": 3})
    assert seen.said == ["closed"]
    assert len(model.began_with) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_only_an_evaluation_of_the_merge_itself_is_scored(trained):
    _, swarm = trained(num_train_epochs=3, swarm={"every_epochs": 2}, evaluated=9)
    with torch.no_grad():
        logits = X[:9].sum(dim=1, keepdim=True) + 1  # every parameter was 1
        expected = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, Y[:9]))
    assert swarm.scored == [(1, 9, round(expected, 4), [])]
    _, swarm = trained(num_train_epochs=3, swarm={"every_steps": 2}, evaluated=9)
    assert [number for number, *_ in swarm.scored] == [3]  # after batches 2, 4, 6 and 8; epochs have 3
    callback = SwarmCallback("aml", score=False)
    _, swarm = trained(callback=callback, swarm={"every_epochs": 1}, evaluated=9)
    assert swarm.scored == []


def test_the_log_history_has_every_merge_and_later_callbacks_see_the_figures(trained):
    class Reporter(transformers.TrainerCallback):
        seen = []  # noqa: RUF012 - one test, one list

        def on_log(self, *_, logs, **__):
            self.seen.append(logs.get("konsil_round"))

    trainer, _ = trained(None, Reporter(), swarm={"every_steps": 3}, logging_steps=3)
    kept = [entry for entry in trainer.state.log_history if "konsil_members" in entry]
    assert [(entry["step"], entry["konsil_round"], entry["konsil_members"]) for entry in kept] == [
        (3, 1.0, 2.0),
        (6, 2.0, 2.0),
    ]
    assert Reporter.seen == [1.0, 2.0, 2.0]


def test_a_batch_can_be_counted_in_another_way(trained):
    callback = SwarmCallback("aml", examples=lambda named: 10 * len(named["values"]))
    _, swarm = trained(callback=callback, num_train_epochs=1)
    assert swarm.said == [80, 80, 60, "epoch 0", "closed"]


class Fails(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
        raise ValueError("a bad batch")


def test_train_that_raises_leaves_at_the_end_of_the_with(trained):
    model = Model()
    callback = SwarmCallback("aml")
    with pytest.raises(ValueError, match="a bad batch"), callback:
        trained(model, Fails(), callback=callback)
    with pytest.raises(StudyError, match="takes no part"):
        _ = callback.swarm
    assert not model._forward_pre_hooks


def test_a_model_does_not_keep_its_callback(trained):
    model = Model()
    callback = SwarmCallback("aml")
    with pytest.raises(ValueError, match="a bad batch"):
        trained(model, Fails(), callback=callback)
    swarm, weak = callback.swarm, weakref.ref(callback)
    del callback
    gc.collect()
    assert weak() is None
    assert swarm.said == [8, "left"]
    model(X, Y)


def test_in_a_with_several_trainings_are_one_session(trained):
    with SwarmCallback("aml") as callback:
        trainer, swarm = trained(callback=callback, num_train_epochs=1)
        trainer.train()
        trainer.evaluate(trainer.train_dataset)
        assert callback.swarm is swarm
        assert swarm.said == [8, 8, 6, "epoch 0"] * 2
    assert swarm.said[-1] == "closed"
