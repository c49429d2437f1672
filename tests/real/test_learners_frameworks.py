"""scikit-learn and PyTorch models through their learners: what travels, what stays, what a merge reaches."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest

from konsil.core.parameters import is_mark, views
from konsil.errors import ConfigError
from konsil.learners import learner_for
from konsil.wall.layout import read_arrays, seal_arrays

pytestmark = pytest.mark.real


def through_memory(learner):
    """A learner's own parameters as they come back over the wall: read-only views of sealed memory."""
    schema = learner.schema()
    sealed = seal_arrays(schema, learner.parameters())
    _, data = read_arrays(sealed, schema)
    return sealed, views(schema, data)


def framework(name):
    """Import a framework; without it skip, but not in CI, where every check must run."""
    if find_spec(name) is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{name} is missing in CI")
        pytest.skip(f"NOT CHECKED: {name} is not installed")
    return pytest.importorskip(name)


X = np.random.default_rng(1).normal(size=(60, 4))
Y = (X[:, 0] + X[:, 1] > 0).astype(int)


def linear_models():
    framework("sklearn")
    from sklearn import linear_model  # noqa: PLC0415 - only where scikit-learn is

    return [
        linear_model.SGDClassifier(random_state=1),
        linear_model.SGDRegressor(random_state=1),
        linear_model.Perceptron(random_state=1),
        linear_model.LogisticRegression(warm_start=True),
        linear_model.LinearRegression(),
    ]


def test_linear_models_join_unfitted_and_go_on_from_the_merge():
    from konsil.learners.sklearn import prepare  # noqa: PLC0415 - as above

    for model in linear_models():
        classes = (
            [0, 1] if hasattr(model, "predict_log_proba") or hasattr(model, "decision_function") else None
        )
        assert prepare(model, 4, classes) is model
        learner = learner_for(model)
        before = learner.schema()
        assert all(not array.any() for array in learner.parameters().values())
        learner.load({name: np.full_like(array, 2) for name, array in learner.parameters().items()})
        assert np.all(model.predict(np.ones((1, 4))) == (1 if classes else 10))
        if hasattr(model, "partial_fit"):
            model.partial_fit(X, Y)
            assert np.abs(learner.parameters()["coef_"] - 2).max() < 60
        else:
            model.fit(X, Y)
        assert learner.schema() == before


def test_a_fit_with_a_warm_start_begins_at_the_merge():
    framework("sklearn")
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - as above

    trained = LogisticRegression(max_iter=500).fit(X, Y)
    from konsil.learners.sklearn import prepare  # noqa: PLC0415 - as above

    model = prepare(LogisticRegression(warm_start=True, max_iter=500), 4, [0, 1])
    learner_for(model).load({"coef_": trained.coef_, "intercept_": trained.intercept_})
    model.fit(X, Y)
    assert model.n_iter_[0] < trained.n_iter_[0]


def test_three_classes_have_their_own_coefficients_even_where_one_was_never_seen():
    framework("sklearn")
    from sklearn.linear_model import LogisticRegression, SGDClassifier  # noqa: PLC0415 - as above

    from konsil.learners.sklearn import prepare  # noqa: PLC0415 - as above

    for model in (SGDClassifier(), LogisticRegression(warm_start=True)):
        prepare(model, 4, ["AML", "ALL", "APL"])
        assert learner_for(model).parameters()["coef_"].shape == (3, 4)
        assert list(model.classes_) == ["ALL", "AML", "APL"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda m: m.SGDClassifier(), "was never fitted"),
        (lambda m: m.SGDClassifier(average=True).fit(X, Y), "average=False"),
        (lambda m: m.LogisticRegression().fit(X, Y), "warm_start=True"),
        (lambda m: m.Lasso(alpha=0.1).fit(X, Y), "warm_start=True"),
    ],
)
def test_a_linear_model_that_a_merge_would_not_reach_is_refused_with_what_to_do(make, complaint):
    framework("sklearn")
    from sklearn import linear_model  # noqa: PLC0415 - as above

    with pytest.raises(ConfigError, match=complaint):
        learner_for(make(linear_model))


def test_an_estimator_without_coefficients_is_refused():
    framework("sklearn")
    from sklearn.linear_model import SGDClassifier  # noqa: PLC0415 - as above
    from sklearn.svm import SVC  # noqa: PLC0415 - as above

    from konsil.learners.sklearn import prepare  # noqa: PLC0415 - as above

    with pytest.raises(ConfigError, match="no coefficients"):
        learner_for(SVC())
    with pytest.raises(ConfigError, match="its classes are not known"):
        prepare(SGDClassifier(), 4)


def test_a_perceptrons_optimiser_goes_on_with_the_arrays_that_were_loaded():
    framework("sklearn")
    from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: PLC0415 - as above

    from konsil.learners.sklearn import prepare  # noqa: PLC0415 - as above

    for model, classes in (
        (MLPClassifier(hidden_layer_sizes=(5,), random_state=1), [0, 1]),
        (MLPRegressor(hidden_layer_sizes=(5,), random_state=1), None),
    ):
        with pytest.raises(ConfigError, match="was never fitted"):
            learner_for(model)
        prepare(model, 4, classes)
        learner = learner_for(model)
        travelling = [name for name in learner.parameters() if not is_mark(name)]
        assert sorted(travelling) == ["coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1"]
        model.partial_fit(X, Y)
        held = [*model.coefs_, *model.intercepts_]
        learner.load({name: np.zeros_like(array) for name, array in learner.parameters().items()})
        assert all(not array.any() for array in held)
        model.partial_fit(X, Y)
        now = learner.parameters()
        assert now["intercepts_.1"] is held[3]
        assert 0 < np.abs(now["intercepts_.1"]).max() < 0.01


def test_a_module_is_loaded_in_place_and_its_integer_buffers_stay():
    torch = framework("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    learner = learner_for(module, local=("1.running_*",))
    assert sorted(learner.parameters()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert np.shares_memory(learner.parameters()["0.weight"], module[0].weight.detach().numpy())
    optimiser = torch.optim.Adam(module.parameters())
    module(torch.ones(4, 3)).sum().backward()
    optimiser.step()
    sealed, values = through_memory(learner)
    expected = {name: array.copy() for name, array in values.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    learner.load(values)
    del values
    sealed.close()
    assert all(np.array_equal(array, expected[name]) for name, array in learner.parameters().items())
    assert module[0].weight.requires_grad
    optimiser.step()


def test_half_precision_travels_as_it_is():
    torch = framework("torch")
    module = torch.nn.Linear(3, 2)
    for dtype, code in ((torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float64, "F64")):
        module = module.to(dtype)
        learner = learner_for(module)
        assert {tensor.dtype for tensor in learner.schema().tensors} == {code}
        sealed, values = through_memory(learner)
        expected = module.weight.detach().clone()
        with torch.no_grad():
            module.weight.zero_()
        learner.load(values)
        assert torch.equal(module.weight, expected)
        del values
        sealed.close()


def test_a_wrapped_module_has_the_names_of_the_module_inside():
    torch = framework("torch")
    module = torch.nn.Linear(3, 2)
    wrapped = torch.nn.DataParallel(module)
    assert learner_for(wrapped).schema() == learner_for(module).schema()


def test_a_module_on_a_device_is_copied_there_and_back():
    torch = framework("torch")
    if not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: no CUDA device")
    for dtype in (torch.float32, torch.bfloat16):
        module = torch.nn.Linear(3, 2).to("cuda", dtype)
        learner = learner_for(module)
        sealed, values = through_memory(learner)
        expected = module.weight.detach().clone()
        with torch.no_grad():
            module.weight.zero_()
        learner.load(values)
        assert torch.equal(module.weight, expected)
        del values
        sealed.close()
