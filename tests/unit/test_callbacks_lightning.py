"""The Lightning callback in a real Trainer, without a node: what is counted, when it merges, what is scored."""

from __future__ import annotations

import pytest

from konsil.callbacks import attendance as module
from konsil.core.rules.settings import StudySettings
from konsil.errors import StudyError
from konsil.learners import learner_for

torch = pytest.importorskip("torch", reason="NOT CHECKED: torch is not installed")
lightning = pytest.importorskip("lightning.pytorch", reason="NOT CHECKED: lightning is not installed")

from konsil.callbacks.lightning import SwarmCallback  # noqa: E402 - only where Lightning is
from konsil.learners.torch.host import ARRAY_DTYPES, deferred  # noqa: E402 - only where PyTorch is

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning gives advice as warnings

X = torch.linspace(-1, 1, 22 * 3).reshape(22, 3)
Y = (X.sum(dim=1, keepdim=True) > 0).float()


class Module(lightning.LightningModule):
    def __init__(self, rate=0.0):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.rate = rate
        self.began_with = []

    def training_step(self, batch):
        self.began_with.append(float(self.layer.bias.detach()))
        return self._loss(batch)

    def validation_step(self, batch):
        self.log("val_loss", self._loss(batch))
        self.log("val/accuracy", 0.5)
        self.log("other", 1.0)

    def _loss(self, batch):
        return torch.nn.functional.binary_cross_entropy_with_logits(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Manual(Module):
    """Steps two optimisers by hand, with the second batch of two."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(self._loss(batch))
        if batch_idx % 2:
            for optimizer in self.optimizers():
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.0) for parameter in self.parameters()]


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
        self.scored.append((self.last.round, examples, loss, metrics))

    def close(self):
        self.said.append("closed")

    def leave(self):
        self.said.append("left")


class Keeper(lightning.loggers.logger.Logger):
    name, version = "keeper", 0

    def __init__(self):
        super().__init__()
        self.kept = []

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        if "konsil_round" in metrics:
            self.kept.append((step, metrics["konsil_round"], metrics["konsil_members"]))


def loader(number=22):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X[:number], Y[:number]), batch_size=8)


@pytest.fixture
def fitted(monkeypatch, tmp_path):
    """Fit a module with the callback; gives the module and the fake swarm."""

    def fit(model=None, *, callback=None, swarm=None, held_out=None, train=None, logger=False, **options):
        swarms = []

        def join(_study, joining, **join_options):
            swarms.append(FakeSwarm(joining, join_options, **(swarm or {})))
            return swarms[-1]

        monkeypatch.setattr(module, "join", join)
        model = model or Module()
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=logger,
            callbacks=[callback or SwarmCallback("aml", node="here")],
            default_root_dir=tmp_path,
            **(quiet | {"max_epochs": 2} | options),
        )
        trainer.fit(model, loader() if train is None else train, held_out)
        return model, swarms[-1]

    return fit


def test_every_batch_counts_with_its_true_size_the_last_one_too(fitted):
    _, swarm = fitted()
    assert swarm.said == [8, 8, 6, "epoch 0", 8, 8, 6, "epoch 0", "closed"]
    assert swarm.options["node"] == "here"


def test_a_step_is_one_of_the_optimiser(fitted):
    _, swarm = fitted(accumulate_grad_batches=2, max_epochs=1)
    assert swarm.said == [16, 6, "epoch 0", "closed"]


def test_a_step_by_hand_counts_once_however_many_optimisers_step(fitted):
    _, swarm = fitted(Manual(), max_epochs=1)
    assert swarm.said == [16, "epoch 6", "closed"]


def test_an_epoch_of_unknown_length_and_one_that_is_cut_short_count_once(fitted):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    stream = torch.utils.data.DataLoader(Stream(), batch_size=8)
    _, swarm = fitted(train=stream)
    assert swarm.said == [8, 8, 6, "epoch 0", 8, 8, 6, "epoch 0", "closed"]
    _, swarm = fitted(limit_train_batches=2)
    assert swarm.said == [8, 8, "epoch 0", 8, 8, "epoch 0", "closed"]


def test_a_merge_in_the_middle_of_an_epoch_is_what_the_next_batch_begins_with(fitted):
    model, _ = fitted(swarm={"every_steps": 2})
    assert model.began_with[2:] == [1, 1, 2, 2]


def test_the_study_ends_fit_with_its_last_merge_in_the_module(fitted):
    for swarm in ({"every_steps": 2, "rounds": 2}, {"every_epochs": 2, "rounds": 2}):
        model, seen = fitted(Module(rate=1.0), max_epochs=50, swarm=swarm, held_out=loader(5))
        assert seen.last.round == 2
        assert seen.scored[-1][:2] == (2, 5)
        assert {float(value) for value in model.layer.weight.flatten()} == {2.0}


def test_a_trainer_that_must_go_on_does_not_train_the_last_merge_away(fitted):
    model, seen = fitted(Module(rate=1.0), min_epochs=3, max_epochs=3, swarm={"every_steps": 2, "rounds": 2})
    assert len(model.began_with) == 9
    assert seen.last.round == 2
    assert {float(value) for value in model.layer.weight.flatten()} == {2.0}


def test_the_last_merge_of_a_module_on_an_accelerator_is_kept_too(fitted, monkeypatch):
    def elsewhere(tensor):
        return deferred(tuple(tensor.shape), ARRAY_DTYPES[tensor.dtype], tensor.clone)

    monkeypatch.setattr("konsil.learners.torch.learner.as_array", elsewhere)
    model, _ = fitted(Module(rate=1.0), min_epochs=2, max_epochs=2, swarm={"every_steps": 2, "rounds": 1})
    assert {float(value) for value in model.layer.weight.flatten()} == {1.0}


def test_nothing_is_trained_for_a_study_that_was_over_before(fitted):
    model, seen = fitted(max_epochs=50, swarm={"rounds": 3, "done": 3})
    assert model.began_with == []
    assert seen.said == ["closed"]


def test_only_a_validation_of_the_merge_itself_is_scored(fitted):
    held_out = loader(9)
    _, swarm = fitted(max_epochs=3, swarm={"every_epochs": 2}, held_out=held_out)
    with torch.no_grad():  # every parameter was 1
        layer = torch.nn.Linear(3, 1)
        for parameter in layer.parameters():
            parameter.fill_(1)
        logits = layer(X[:9])
        expected = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, Y[:9]))
    assert swarm.scored == [(1, 9, pytest.approx(expected), {"accuracy": 0.5})]
    _, swarm = fitted(max_epochs=3, swarm={"every_steps": 2}, held_out=held_out)
    assert [number for number, *_ in swarm.scored] == [3]  # after batches 2, 4, 6 and 8; epochs have 3
    callback = SwarmCallback("aml", score=False)
    _, swarm = fitted(callback=callback, swarm={"every_epochs": 1}, held_out=held_out)
    assert swarm.scored == []


def test_a_validation_after_a_batch_that_only_collects_is_nobodys(fitted):
    twice = torch.utils.data.TensorDataset(torch.cat([X, X]), torch.cat([Y, Y]))
    train = torch.utils.data.DataLoader(twice, batch_size=11)
    options = {"accumulate_grad_batches": 2, "val_check_interval": 3, "max_epochs": 1}
    _, swarm = fitted(train=train, swarm={"every_steps": 1}, held_out=loader(9), **options)
    assert swarm.said == [22, 22, "closed"]
    assert swarm.scored == []


def test_the_check_of_a_few_batches_before_training_scores_nothing(fitted):
    _, swarm = fitted(swarm={"done": 3}, held_out=loader(9))  # this member comes late: there is a merge
    assert swarm.scored == []


def test_loggers_get_the_figures_of_every_merge(fitted):
    keeper = Keeper()
    fitted(swarm={"every_steps": 3}, logger=keeper)
    assert keeper.kept == [(3, 1.0, 2.0), (6, 2.0, 2.0)]


def test_a_batch_can_be_counted_in_another_way(fitted):
    _, swarm = fitted(callback=SwarmCallback("aml", examples=lambda batch: 10 * len(batch[0])), max_epochs=1)
    assert swarm.said == [80, 80, 60, "epoch 0", "closed"]


def test_fit_that_raises_leaves(fitted):
    class Fails(Module):
        def training_step(self, *_):
            raise ValueError("a bad batch")

    callback = SwarmCallback("aml")
    left = []
    callback._attendance.leave = lambda leave=callback._attendance.leave: (
        left.append(callback.swarm.said),
        leave(),
    )
    with pytest.raises(ValueError, match="a bad batch"):
        fitted(Fails(), callback=callback)
    assert left == [["left"]]
    with pytest.raises(StudyError, match="takes no part"):
        _ = callback.swarm
