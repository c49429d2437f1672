"""The Keras learner and callback without a node: names, what travels, what is counted, and when a merge is used.

On the backend that KERAS_BACKEND names, else PyTorch; tests/real runs them on JAX, too.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest

from konsil.callbacks import attendance as module
from konsil.core.parameters import views
from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError, StudyError
from konsil.learners import LocalTraining, learner_for
from konsil.wall.layout import read_arrays, seal_arrays

if find_spec("keras") is None:
    pytest.skip("NOT CHECKED: keras is not installed", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "torch")
if find_spec(os.environ["KERAS_BACKEND"]) is None:
    pytest.skip(f"NOT CHECKED: {os.environ['KERAS_BACKEND']} is not installed", allow_module_level=True)
keras = pytest.importorskip("keras")

from konsil.callbacks.keras import SwarmCallback  # noqa: E402 - the backend is chosen first

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Converting a tensor:UserWarning"
)

X = np.random.default_rng(1).normal(size=(22, 3)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")


def build(**layers):
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, **layers),
            keras.layers.BatchNormalization(**layers),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


NAMES = [
    "0000/sequential/dense/kernel",
    "0001/sequential/dense/bias",
    "0002/sequential/batch_normalization/gamma",
    "0003/sequential/batch_normalization/beta",
    "0004/sequential/batch_normalization/moving_mean",
    "0005/sequential/batch_normalization/moving_variance",
    "0006/sequential/dense/kernel",
    "0007/sequential/dense/bias",
]


def value(variable):
    return keras.ops.convert_to_numpy(variable.value)


# --- the learner -----------------------------------------------------------------------------------


def test_names_are_the_same_however_many_models_the_process_has_built():
    assert list(learner_for(build()).parameters()) == NAMES
    assert list(learner_for(build()).parameters()) == NAMES
    assert build().weights[0].path != build().weights[0].path


def test_a_study_can_keep_normalisation_local_by_its_name():
    kept = learner_for(build(), local=("*batch_normalization*",))
    assert list(kept.parameters()) == [name for name in NAMES if "batch" not in name]


def test_frozen_layers_and_their_statistics_stay():
    assert list(learner_for(build(trainable=False)).parameters()) == NAMES[6:]


def test_of_a_layer_with_a_low_rank_adapter_only_what_trains_travels():
    model = build()
    model.layers[0].enable_lora(2)
    names = [name.split("/")[-1] for name in learner_for(model).parameters()]
    assert names.count("kernel") == 1
    assert {"lora_kernel_a", "lora_kernel_b"} <= set(names)


def test_a_model_that_is_not_built_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="not built"):
        learner_for(keras.Sequential([keras.layers.Dense(2)]))


@pytest.mark.parametrize(
    ("dtype", "code"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("float64", "F64")]
)
def test_every_precision_travels_as_it_is_and_survives_the_memory_that_it_came_in(dtype, code):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is told to")
    layer = keras.layers.Dense(64, dtype=dtype)
    model = keras.Sequential([keras.Input((64,), dtype=dtype), layer])
    learner = learner_for(model)
    schema = learner.schema()
    assert {tensor.dtype for tensor in schema.tensors} == {code}
    expected = value(layer.kernel).copy()
    with seal_arrays(schema, learner.parameters()) as sealed:
        layer.kernel.assign(np.zeros((64, 64), "float32"))
        _, data = read_arrays(sealed, schema)
        learner.load(views(schema, data))
        del data
    assert np.array_equal(value(layer.kernel), expected)
    # Whatever happens to an array after it was loaded is nothing to the model.
    arrays = {name: array.copy() for name, array in learner.parameters().items()}
    learner.load(arrays)
    for array in arrays.values():
        array[...] = 0
    assert np.array_equal(value(layer.kernel), expected)


def test_an_adapted_normalization_computes_with_what_was_loaded():
    scale = keras.layers.Normalization()
    scale.adapt(np.array([[10.0], [14.0]], "float32"))
    model = keras.Sequential([keras.Input((1,)), scale, keras.layers.Dense(1)])
    learner = learner_for(model)
    names = [name for name in learner.parameters() if "normalization" in name]
    assert [name.split("/")[-1] for name in names] == ["mean", "variance"]
    learner.load({names[0]: np.array([0.0], "float32"), names[1]: np.array([1.0], "float32")})
    assert float(keras.ops.convert_to_numpy(scale(np.array([[3.0]], "float32")))[0, 0]) == pytest.approx(3.0)


@pytest.mark.parametrize("training", [LocalTraining(prox=0.1), LocalTraining(scaffold=True)])
def test_fedprox_and_scaffold_are_refused(training):
    with pytest.raises(ConfigError, match="cannot do in a Keras model"):
        learner_for(build(), training=training)


def test_another_optimiser_than_the_models_is_refused():
    model = build()
    model.compile("sgd", "binary_crossentropy")
    learner_for(model, training=LocalTraining(optimizer=model.optimizer))
    with pytest.raises(ConfigError, match="not the one"):
        learner_for(model, training=LocalTraining(optimizer=keras.optimizers.SGD()))
    with pytest.raises(ConfigError, match="not compiled"):
        learner_for(build(), training=LocalTraining(reset_optimizer=True))


@pytest.mark.parametrize("scheduled", [False, True])
def test_an_optimiser_forgets_its_momenta_and_its_count_but_no_schedules(scheduled):
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5) if scheduled else 0.1
    model = build()
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy")
    learner = learner_for(model, training=LocalTraining(reset_optimizer=True))
    model.fit(X, Y, batch_size=11, epochs=2, verbose=0)
    moments = [variable for variable in model.optimizer.variables if "dense" in variable.path]
    assert any(value(moment).any() for moment in moments)
    learner.begin_round()
    assert not any(value(moment).any() for moment in moments)
    assert int(value(model.optimizer.variables[0])) == (4 if scheduled else 0)
    assert model.optimizer.variables[0].name == "iteration"


def test_a_model_that_is_compiled_anew_forgets_in_its_new_optimiser():
    model = build()
    model.compile("adam", "binary_crossentropy")
    learner = learner_for(model, training=LocalTraining(reset_optimizer=True))
    model.compile("adam", "binary_crossentropy")
    learner.go_on_with(None)
    model.fit(X, Y, batch_size=11, verbose=0)
    learner.go_on_with(None)
    moments = [variable for variable in model.optimizer.variables if "dense" in variable.path]
    assert any(value(moment).any() for moment in moments)
    learner.begin_round()
    assert not any(value(moment).any() for moment in moments)


# --- the callback ----------------------------------------------------------------------------------


class Last:
    def __init__(self, number):
        self.round, self.members, self.absent = number, {"bonn": 1, "lyon": 1}, {}


class FakeSwarm:
    """Merges after so many steps or epochs: what the model holds, times ``factor``, through real memory."""

    def __init__(self, model, every_steps=0, every_epochs=0, rounds=99, factor=0.0):
        self.settings = StudySettings(name="aml", every_steps=1)
        self.model, self.learner = model, learner_for(model)
        self.schema = self.learner.schema()
        self.every_steps, self.every_epochs, self.rounds, self.factor = (
            every_steps,
            every_epochs,
            rounds,
            factor,
        )
        self.last, self.examples, self.steps, self.epochs = None, 0, 0, 0
        self.said, self.committed, self.scored = [], [], []

    @property
    def scored_last(self):
        return self.last.round in {number for number, *_ in self.scored}

    @property
    def finished(self):
        return self.last is not None and self.last.round >= self.rounds

    def step(self, examples):
        self.said.append(examples)
        self.steps += 1
        return self._merge(examples, due=self.steps == self.every_steps)

    def epoch(self, examples=0):
        self.said.append("epoch")
        self.epochs += 1
        return self._merge(examples, due=self.epochs == self.every_epochs)

    def _merge(self, examples, *, due):
        self.examples += examples
        if due:
            update = {
                name: array * np.float32(self.factor) for name, array in self.learner.parameters().items()
            }
            with seal_arrays(self.schema, update) as sealed:
                _, data = read_arrays(sealed, self.schema)
                self.learner.load(views(self.schema, data))
            self.committed.append(self.examples)
            self.last = Last(len(self.committed))
            self.examples = self.steps = self.epochs = 0
        return due

    def score(self, *, examples, loss=None, **metrics):
        self.scored.append((self.last.round, examples, round(loss, 4), sorted(metrics)))

    def close(self):
        self.said.append("closed")

    def leave(self):
        self.said.append("left")


@pytest.fixture
def fitted(monkeypatch):
    """Fit a model with the callback; gives the model, the fake swarm and the history."""

    def fit(model=None, *more, optimizer=None, callback=None, swarm=None, **options):
        swarms = []

        def join(_study, joining, **_):
            swarms.append(FakeSwarm(joining, **(swarm or {})))
            return swarms[-1]

        monkeypatch.setattr(module, "join", join)
        model = model or build()
        if optimizer is not None or not model.compiled:
            model.compile(
                optimizer or keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=["binary_accuracy"]
            )
        callback = callback or SwarmCallback("aml")
        options = {"batch_size": 8, "epochs": 2, "verbose": 0} | options
        history = model.fit(X, Y, callbacks=[*more, callback], **options)
        return model, swarms[-1], history.history

    return fit


def test_every_batch_counts_with_its_true_size_the_last_one_too(fitted):
    _, swarm, _ = fitted()
    assert swarm.said == [8, 8, 6, "epoch", 8, 8, 6, "epoch", "closed"]


def test_validation_between_the_epochs_does_not_change_the_count(fitted):
    _, swarm, _ = fitted(validation_data=(X[:5], Y[:5]))
    assert swarm.said == [8, 8, 6, "epoch", 8, 8, 6, "epoch", "closed"]


def test_a_merge_in_the_middle_of_an_epoch_is_what_the_next_batch_begins_with(fitted):
    held = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, *_, **__):
            held.append(value(self.model.weights[6]).copy())

    # Without a learning rate nothing but a merge changes the parameters: each halves them.
    _, swarm, _ = fitted(
        None,
        Watch(),
        optimizer=keras.optimizers.SGD(0.0),
        swarm={"every_steps": 2, "factor": 0.5},
    )
    assert swarm.committed == [16, 14, 14]
    ratios = [float(now.ravel()[0] / held[0].ravel()[0]) for now in held]
    assert ratios == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


def test_a_batch_really_trains_from_the_merge(fitted):
    # From zeros everywhere (gamma too) only the last bias has a gradient: mean(0.5 - y) of the batch.
    model, swarm, _ = fitted(epochs=1, shuffle=False, swarm={"every_steps": 2}, batch_size=8)
    assert swarm.committed == [16]
    assert not any(value(variable).any() for variable in (*model.weights[:4], model.weights[6]))
    assert value(model.weights[7])[0] == pytest.approx(-0.5 * float(np.mean(0.5 - Y[16:])), abs=1e-6)


def test_the_study_ends_fit_with_its_last_merge_in_the_model(fitted):
    for swarm in ({"every_steps": 2, "rounds": 2}, {"every_epochs": 1, "rounds": 2}):
        model, seen, history = fitted(epochs=50, swarm=swarm)
        assert len(seen.committed) == 2
        assert len(history["loss"]) == 2
        assert not any(value(variable).any() for variable in model.weights)
        assert seen.said[-1] == "closed"


def test_averages_that_an_optimiser_keeps_do_not_undo_the_merge(fitted):
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9)
    model, seen, _ = fitted(optimizer=optimizer, epochs=50, swarm={"every_epochs": 2, "rounds": 2})
    assert len(seen.committed) == 2
    assert not any(value(variable).any() for variable in model.weights)


def test_only_a_validation_of_the_merge_itself_is_scored(fitted):
    held_out = {"validation_data": (X[:5], Y[:5])}
    _, swarm, history = fitted(epochs=3, swarm={"every_epochs": 2}, **held_out)
    # A model of zeros says one half: its loss is ln 2. The second epoch's validation was the merge's.
    assert swarm.scored == [(1, 5, 0.6931, ["binary_accuracy"])]
    assert round(history["val_loss"][1], 4) == 0.6931
    _, swarm, _ = fitted(epochs=3, swarm={"every_steps": 2}, **held_out)
    assert [number for number, *_ in swarm.scored] == [3]  # after batches 2, 4, 6 and 8; epochs have 3
    _, swarm, _ = fitted(epochs=3, swarm={"every_epochs": 1}, validation_freq=2, **held_out)
    assert [number for number, *_ in swarm.scored] == [2]
    _, swarm, _ = fitted(
        epochs=3, swarm={"every_epochs": 1}, callback=SwarmCallback("aml", score=False), **held_out
    )
    assert swarm.scored == []


def test_the_logs_of_an_epoch_have_the_round(fitted):
    _, _, history = fitted(epochs=2, swarm={"every_epochs": 1})
    assert history["konsil_round"] == [1, 2]
    assert history["konsil_members"] == [2, 2]


def test_batches_that_the_optimiser_collects_are_one_step(fitted):
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    held_out = {"validation_data": (X[:5], Y[:5])}
    _, swarm, _ = fitted(optimizer=optimizer, epochs=1, swarm={"every_steps": 1}, **held_out)
    assert swarm.said == [16, "epoch", "closed"]
    assert swarm.examples == 6
    assert swarm.scored == []  # the third batch has moved the statistics of layers


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="this backend runs one batch at a time")
def test_batches_that_run_in_one_go_are_so_many_steps(fitted):
    model = build()
    model.compile("sgd", "binary_crossentropy", steps_per_execution=2)
    _, swarm, _ = fitted(model, epochs=1, batch_size=6)
    assert [word for word in swarm.said if word] == [12, 10, "epoch", "closed"]
    assert swarm.said.count(0) == 2


class OwnStep(keras.Sequential):
    """Trains nothing and counts nothing, as a model may that has a step of its own."""

    def train_step(self, *state_and_data):
        return ({"mine": 1.0}, state_and_data[0]) if len(state_and_data) == 2 else {"mine": 1.0}


def test_a_model_that_does_not_count_its_examples_is_told_to_say_them(fitted):
    def own():
        model = OwnStep([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    with pytest.raises(ConfigError, match="examples=lambda"):
        fitted(own())
    callback = SwarmCallback("aml", examples=lambda batch: (8, 8, 6)[batch])
    _, swarm, _ = fitted(own(), callback=callback, epochs=1)
    assert swarm.said == [8, 8, 6, "epoch", "closed"]


def test_fit_that_raises_leaves_at_the_end_of_the_with(fitted):
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, *_, **__):
            raise ValueError("a bad batch")

    callback = SwarmCallback("aml")
    with pytest.raises(ValueError, match="a bad batch"), callback:
        fitted(None, Fails(), callback=callback)
    with pytest.raises(StudyError, match="takes no part"):
        _ = callback.swarm


def test_in_a_with_several_fits_are_one_session(fitted):
    model = build()
    with SwarmCallback("aml") as callback:
        _, swarm, _ = fitted(model, callback=callback, epochs=1)
        assert callback.swarm is swarm
        model.fit(X, Y, batch_size=11, epochs=1, verbose=0, callbacks=[callback])
        model.evaluate(X, Y, verbose=0, callbacks=[callback])
        assert swarm.said == [8, 8, 6, "epoch", 11, 11, "epoch"]
    assert swarm.said[-1] == "closed"
