"""scikit-learn estimators as a merge really finds them: which go on from it, which do not, which are refused."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import ensemble, linear_model, svm, tree
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from konsil.core.parameters import is_mark
from konsil.errors import ConfigError, SchemaMismatch
from konsil.learners import learner_for
from konsil.learners.sklearn import prepare
from konsil.session.resume import LocalFile

SLOPES = np.array([3.0, -2.0, 1.0, 0.0, 0.0, 0.0])


def hospitals(seed=0):
    """Three hospitals of one truth: other means, a nuisance that comes along with the signal at one of them."""
    rng = np.random.default_rng(seed)
    tables = []
    for number, size in enumerate((300, 80, 150)):
        rows = rng.normal(0.3 * number, 1, (size, 6))
        rows[:, 3] += 0.8 * number * rows[:, 0]
        tables.append((rows, rows @ SLOPES + rng.normal(0, 0.5, size)))
    return tables


def classes_of(values):
    return (values > 1).astype(int)


def average(learners):
    arrays = [learner.parameters() for learner in learners]
    merged = {name: np.mean([values[name] for values in arrays], axis=0) for name in arrays[0]}
    for learner in learners:
        learner.load(merged)
    return {name: values.copy() for name, values in merged.items()}


def fit_quietly(model, rows, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few iterations, which are wanted here
        model.fit(rows, labels)


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_model.Lasso(alpha=0.1, warm_start=True, tol=1e-10),
        lambda: linear_model.ElasticNet(alpha=0.1, warm_start=True, tol=1e-10),
        linear_model.LinearRegression,
        linear_model.Ridge,
    ],
    ids=["Lasso", "ElasticNet", "LinearRegression", "Ridge"],
)
def test_a_fit_that_converges_ends_at_its_own_optimum_and_one_round_is_all(make):
    tables = hospitals()
    models = [prepare(make(), 6) for _ in tables]
    learners = [learner_for(model) for model in models]
    merges = []
    for _ in range(3):
        for model, (rows, values) in zip(models, tables, strict=True):
            model.fit(rows, values)
        merges.append(average(learners))
    for name, first in merges[0].items():
        np.testing.assert_allclose(merges[2][name], first, atol=1e-6)
    own = [make().fit(*table).coef_ for table in tables]
    np.testing.assert_allclose(merges[0]["coef_"], np.mean(own, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_model.Lasso(alpha=0.05, warm_start=True, max_iter=1),
        lambda: linear_model.ElasticNet(alpha=0.05, warm_start=True, max_iter=1),
        lambda: linear_model.LogisticRegression(warm_start=True, max_iter=2),
        lambda: linear_model.LogisticRegression(warm_start=True, max_iter=2, solver="newton-cg"),
        lambda: linear_model.LogisticRegression(warm_start=True, max_iter=1, solver="newton-cholesky"),
        lambda: linear_model.PoissonRegressor(warm_start=True, max_iter=2),
        lambda: linear_model.GammaRegressor(warm_start=True, max_iter=2),
        lambda: linear_model.TweedieRegressor(warm_start=True, max_iter=2),
    ],
    ids=[
        "Lasso",
        "ElasticNet",
        "lbfgs",
        "newton-cg",
        "newton-cholesky",
        "Poisson",
        "gamma",
        "Tweedie",
    ],
)
def test_a_fit_of_few_iterations_with_a_warm_start_goes_on_from_the_merge(make):
    """A member alone, whose model is given back to it after each few iterations, gets where one fit gets."""
    rows, values = hospitals()[0]
    rows = rows / 4
    model = make()
    labels = classes_of(values) if hasattr(model, "predict_proba") else values
    if type(model).__name__ in {"PoissonRegressor", "GammaRegressor", "TweedieRegressor"}:
        labels = np.exp(values / 4)
    prepare(model, 6, [0, 1] if hasattr(model, "predict_proba") else None)
    learner = learner_for(model)
    distances = []
    settings = {name: value for name, value in model.get_params().items() if name != "max_iter"}
    best = type(model)(**settings, max_iter=10_000).fit(rows, labels).coef_
    for _ in range(60):
        fit_quietly(model, rows, labels)
        learner.load({name: array.copy() for name, array in learner.parameters().items()})
        distances.append(np.abs(model.coef_ - best).max())
    assert distances[-1] < 0.05 * np.abs(best).max()
    assert distances[-1] < 0.5 * distances[0]


def rounds_of_sgd(make, tables, rounds):
    models = [prepare(make(), 6) for _ in tables]
    learners = [learner_for(model) for model in models]
    for _ in range(rounds):
        for model, (rows, values) in zip(models, tables, strict=True):
            model.partial_fit(rows, values)
        merged = average(learners)
    return merged["coef_"]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5])
def test_sparse_models_that_are_merged_between_steps_get_nearer_to_all_rows_than_merged_optima(alpha):
    """Lasso by SGD with an l1 penalty over many rounds, against the average of the hospitals' own Lassos."""
    tables = [(rows[:80], values[:80]) for rows, values in hospitals()]
    rows, values = np.concatenate([r for r, _ in tables]), np.concatenate([v for _, v in tables])
    central = linear_model.Lasso(alpha=alpha).fit(rows, values).coef_
    optima = np.mean([linear_model.Lasso(alpha=alpha).fit(*table).coef_ for table in tables], axis=0)

    def make():
        return linear_model.SGDRegressor(
            penalty="l1", alpha=alpha, learning_rate="constant", eta0=0.002, random_state=0
        )

    merged = rounds_of_sgd(make, tables, 100)
    assert np.abs(merged - central).max() < np.abs(optima - central).max() / 3


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        (linear_model.SGDClassifier(loss="log_loss", penalty="l1"), [0, 1]),
        (linear_model.SGDClassifier(loss="modified_huber", penalty="elasticnet"), [0, 1, 2]),
        (linear_model.SGDClassifier(loss="hinge", learning_rate="pa1", penalty=None), [0, 1]),
        (linear_model.SGDRegressor(penalty="elasticnet"), None),
        (linear_model.Perceptron(), [0, 1]),
        (MLPClassifier((4,)), [0, 1, 2]),
        (MLPRegressor(hidden_layer_sizes=(4, 3), solver="sgd"), None),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_training_goes_on_step_by_step_in_the_rows_own_precision(model, classes, dtype):
    rows, values = hospitals()[0]
    rows = rows.astype(dtype)
    labels = values if classes is None else np.arange(len(values)) % len(classes)
    prepare(model, 6, classes, dtype)
    learner = learner_for(model)
    before = learner.schema()
    coefficients = {tensor.dtype for tensor in before.tensors if "coef" in tensor.name}
    assert coefficients == {"F64" if dtype == "float64" else "F32"}
    learner.load({name: array * 0 for name, array in learner.parameters().items()})
    model.partial_fit(rows, labels)
    model.partial_fit(rows, labels)
    assert learner.schema() == before
    assert any(array.any() for array in learner.parameters().values())


@pytest.mark.filterwarnings("ignore:Class Passive:FutureWarning")  # deprecated in scikit-learn 1.8
@pytest.mark.skipif(not hasattr(linear_model, "PassiveAggressiveClassifier"), reason="gone from scikit-learn")
def test_passive_aggressive_models_go_on_from_the_merge():
    rows, values = hospitals()[0]
    model = prepare(linear_model.PassiveAggressiveClassifier(random_state=0), 6, [0, 1])
    learner = learner_for(model)
    for _ in range(3):
        model.partial_fit(rows, classes_of(values))
        learner.load({name: array.copy() for name, array in learner.parameters().items()})
    assert model.score(rows, classes_of(values)) > 0.9


def test_a_perceptron_is_prepared_at_its_random_start_whatever_it_held():
    rows, values = hospitals()[0]
    used = MLPClassifier((4,), random_state=7)
    for _ in range(3):
        used.partial_fit(rows[:, :5], classes_of(values), classes=[0, 1])
    prepare(used, 6, ["AML", "other"])
    fresh = prepare(MLPClassifier((4,), random_state=7), 6, ["AML", "other"])
    for name, array in learner_for(fresh).parameters().items():
        assert np.array_equal(array, learner_for(used).parameters()[name]), name
    start = MLPClassifier((4,), random_state=7, learning_rate_init=0.5)
    prepare(start, 6, ["AML", "other"])
    assert np.array_equal(start.coefs_[0], fresh.coefs_[0])  # untouched by any step
    assert np.array_equal(start.intercepts_[1], fresh.intercepts_[1])
    assert start.learning_rate_init == 0.5
    assert fresh.t_ == 0
    assert fresh.loss_curve_ == []


def test_a_linear_model_is_prepared_anew_whatever_it_held():
    rows, values = hospitals()[0]
    model = linear_model.SGDClassifier().partial_fit(rows[:, :3], classes_of(values), classes=[0, 1])
    prepare(model, 6, ["a", "b", "c"])
    assert model.coef_.shape == (3, 6)
    assert not model.coef_.any()


@pytest.mark.parametrize(
    "make", [linear_model.SGDClassifier, lambda: make_pipeline(StandardScaler(), MLPClassifier())]
)
@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (np.ones((50, 6)), r"is a ndarray of shape \(50, 6\)"),
        (pd.DataFrame(np.ones((50, 6)), columns=list("abcdef")), r"DataFrame of shape \(50, 6\)"),
        (np.ones(6), "is a ndarray of float"),
        ([[1.0, 2.0], [3.0, 4.0]], "is a list of list"),
        ("abcdef", "is a str, and no number"),
        (6.0, "is a float, and no number"),
        (None, "is a NoneType, and no number"),
        (0, "without any column"),
        ([], "without any column"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rows_are_not_taken_for_their_number_of_columns(make, columns, complaint):
    with pytest.raises(ConfigError, match=complaint) as refusal:
        prepare(make(), columns, [0, 1])
    assert "`X.shape[1]`" in refusal.value.do
    assert "`X.columns`" in refusal.value.do


@pytest.mark.parametrize(
    "columns", [6, np.int64(6), list("abcdef"), np.array(list("abcdef")), pd.Index(list("abcdef"))]
)
def test_columns_are_a_whole_number_or_names(columns):
    model = prepare(linear_model.SGDClassifier(), columns, [0, 1])
    assert model.coef_.shape == (1, 6)
    pipeline = prepare(make_pipeline(StandardScaler(), linear_model.SGDClassifier()), columns, [0, 1])
    assert learner_for(pipeline).schema()


def joined_by(make, columns, classes):
    return learner_for(prepare(make(), columns, classes)).schema()


MAKES = [
    linear_model.SGDClassifier,
    lambda: linear_model.LogisticRegression(warm_start=True),
    lambda: MLPClassifier((3,)),
    lambda: make_pipeline(StandardScaler(), linear_model.SGDClassifier()),
    lambda: make_pipeline(StandardScaler(), MLPClassifier((3,))),
]


@pytest.mark.parametrize("make", MAKES)
def test_columns_in_another_order_are_another_models(make):
    study = joined_by(make, list("abcdef"), [0, 1])
    study.require_same(joined_by(make, pd.Index(list("abcdef")), [0, 1]))
    for columns in (list("fedcba"), list("abcdeg"), 6):
        with pytest.raises(SchemaMismatch, match="The columns of the rows differ, or their order"):
            study.require_same(joined_by(make, columns, [0, 1]))


@pytest.mark.parametrize("make", MAKES)
def test_other_classes_are_another_models(make):
    study = joined_by(make, 6, [0, 1])
    for same in ([1, 0], [True, False], np.array([0.0, 1.0]), np.array([0, 1], np.int8)):
        study.require_same(joined_by(make, 6, same))
    for classes in ([1, 2], ["0", "1"], ["AML", "other"]):
        with pytest.raises(SchemaMismatch, match="The classes differ: every member must give"):
            study.require_same(joined_by(make, 6, classes))


def test_classes_are_compared_where_a_model_was_not_prepared_but_trained():
    rows, values = hospitals()[0]
    model = linear_model.SGDClassifier().partial_fit(rows, classes_of(values), classes=[0, 1])
    assert learner_for(model).schema() == joined_by(linear_model.SGDClassifier, 6, [0, 1])


def test_what_a_fit_finds_in_a_hospitals_own_rows_does_not_change_the_schema():
    rows, values = hospitals()[0]
    model = prepare(linear_model.LogisticRegression(warm_start=True, max_iter=2), 6, [0, 1])
    learner = learner_for(model)
    before = learner.schema()
    fit_quietly(model, rows, np.where(classes_of(values) == 1, "AML", "other"))
    assert learner.schema() == before
    learner.load({name: array + 1 for name, array in learner.parameters().items()})
    assert model.coef_.shape == (1, 6)


def test_scikit_learn_compares_the_columns_of_the_rows_that_are_trained_on():
    frame = pd.DataFrame(hospitals()[0][0], columns=list("abcdef"))
    labels = classes_of(hospitals()[0][1])
    model = prepare(linear_model.SGDClassifier(), frame.columns, [0, 1])
    model.partial_fit(frame, labels)
    with pytest.raises(ValueError, match="same order"):
        model.partial_fit(frame[frame.columns[::-1]], labels)
    prepare(model, 6, [0, 1]).partial_fit(frame.to_numpy(), labels)  # every warning is an error here


def test_the_optimisers_moments_stay_where_they_are():
    rows, values = hospitals()[0]
    model = prepare(MLPClassifier((4,), random_state=1), 6, [0, 1])
    learner = learner_for(model)
    model.partial_fit(rows, classes_of(values))
    moments = [moment.copy() for moment in model._optimizer.ms]
    learner.load({name: array * 0 for name, array in learner.parameters().items()})
    assert all(np.array_equal(now, old) for now, old in zip(model._optimizer.ms, moments, strict=True))
    travelling = [name for name in learner.parameters() if not is_mark(name)]
    assert sorted(travelling) == ["coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1"]


RESUMED = {
    "adam": lambda: MLPClassifier((4,), random_state=1, learning_rate_init=0.02),
    "momentum": lambda: MLPRegressor(
        hidden_layer_sizes=(4,), random_state=1, solver="sgd", learning_rate="invscaling"
    ),
    "adaptive": lambda: MLPClassifier((4,), random_state=1, solver="sgd", learning_rate="adaptive", tol=9.0),
    "optimal": lambda: linear_model.SGDClassifier(random_state=1),
    "invscaling": lambda: linear_model.SGDRegressor(random_state=1),
    "pipeline": lambda: make_pipeline(MLPClassifier((4,), random_state=1)),
}


def stepped(model, steps):
    rows, values = hospitals()[0]
    last = model[-1] if hasattr(model, "steps") else model
    for _ in range(steps):
        last.partial_fit(rows, values if isinstance(last, RegressorMixin) else classes_of(values))


@pytest.mark.parametrize("name", RESUMED)
def test_a_script_that_is_started_again_trains_on_as_if_it_had_never_stopped(name, tmp_path):
    first, again, without = (
        prepare(RESUMED[name](), 6, [0, 1] if "inv" not in name and name != "momentum" else None)
        for _ in range(3)
    )
    stepped(first, 30)
    before = learner_for(first)
    kept = {key: array.copy() for key, array in before.parameters().items()}
    file = LocalFile(tmp_path, swarm="5" * 64, study="aml", member="bonn")
    file.save(before, 3, "d3")
    resumed, other = learner_for(again), learner_for(without)
    resumed.load(kept)
    assert file.load(resumed, 3, "d3")
    other.load(kept)
    for model in (first, again, without):
        stepped(model, 3)
    for key, array in before.parameters().items():
        np.testing.assert_array_equal(resumed.parameters()[key], array)
    assert any(
        not np.array_equal(other.parameters()[key], array) for key, array in before.parameters().items()
    )


def test_the_state_of_another_optimiser_is_refused_and_nothing_is_changed():
    first = prepare(MLPClassifier((4,), random_state=1), 6, [0, 1])
    stepped(first, 2)
    state = learner_for(first).local_state()
    for other in (
        MLPClassifier((4,), solver="sgd"),
        MLPClassifier((5,)),
        linear_model.SGDClassifier(),
        linear_model.LogisticRegression(warm_start=True),
    ):
        prepare(other, 6, [0, 1])
        before = dict(vars(other))
        with pytest.raises(ConfigError, match="state is another model's"):
            learner_for(other).load_local_state(state)
        assert vars(other).keys() == before.keys()
        assert all(vars(other)[name] is value for name, value in before.items())


def test_a_perceptron_that_had_made_no_step_makes_its_first_one_anew(tmp_path):
    file = LocalFile(tmp_path, swarm="5" * 64, study="aml", member="bonn")
    file.save(learner_for(prepare(MLPClassifier((4,), random_state=1), 6, [0, 1])), 3, "d3")
    model = prepare(MLPClassifier((4,), random_state=1), 6, [0, 1])
    stepped(model, 2)
    assert file.load(learner_for(model), 3, "d3")
    assert not hasattr(model, "_optimizer")
    assert model.t_ == 0


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (linear_model.LogisticRegression(solver="liblinear", warm_start=True), "liblinear"),
        (linear_model.LogisticRegression(solver="sag", warm_start=True), "memory of gradients"),
        (linear_model.LogisticRegression(solver="saga", warm_start=True), "memory of gradients"),
        (linear_model.LogisticRegression(), "warm_start=True"),
        (linear_model.LogisticRegressionCV(), "cross-validation"),
        (linear_model.LassoCV(), "cross-validation"),
        (linear_model.ElasticNetCV(), "cross-validation"),
        (linear_model.RidgeCV(), "cross-validation"),
        (linear_model.MultiTaskLasso(warm_start=True), "all outputs at once"),
        (linear_model.MultiTaskElasticNet(warm_start=True), "all outputs at once"),
        (linear_model.HuberRegressor(warm_start=True), "loss='huber'"),
        (linear_model.SGDOneClassSVM(), "offset"),
        (linear_model.RidgeClassifier(), "squared_error"),
        (linear_model.LassoLars(), "starts anew"),
        (linear_model.BayesianRidge(), "starts anew"),
        (linear_model.SGDClassifier(average=True), "average=False"),
        (svm.LinearSVC(), "loss='hinge'"),
        (LinearDiscriminantAnalysis(), "covariance"),
        (MLPClassifier(solver="lbfgs"), "solver='adam' or 'sgd'"),
        (StandardScaler(), "no coefficients"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_a_model_that_a_merge_would_not_reach_is_refused_with_what_to_use_instead(model, why):
    for use in (learner_for, lambda model: prepare(model, 6, [0, 1])):
        with pytest.raises(ConfigError, match=why) as refusal:
            use(model)
        assert refusal.value.safe == "Nothing was sent; the model is untouched."
        assert refusal.value.do.startswith("Use ")


class XGBModel(BaseEstimator):
    """Named as the class that XGBoost's estimators derive from."""


@pytest.mark.parametrize(
    "model",
    [
        tree.DecisionTreeClassifier(),
        ensemble.RandomForestClassifier(),
        ensemble.ExtraTreesRegressor(),
        ensemble.GradientBoostingClassifier(),
        ensemble.HistGradientBoostingClassifier(),
        ensemble.IsolationForest(),
        XGBModel(),
        make_pipeline(StandardScaler(), ensemble.RandomForestClassifier()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_trees_are_refused_with_the_reason(model):
    with pytest.raises(ConfigError, match=r"trees cannot be merged.*docs/data-scientist\.md"):
        learner_for(prepare(model, 6, [0, 1]))


@pytest.mark.parametrize("name", ["xgboost.core.Booster", "lightgbm.basic.Booster", "catboost.core.CatBoost"])
def test_trees_of_other_packages_are_refused_with_the_same_reason(name):
    module, _, kind = name.rpartition(".")
    with pytest.raises(ConfigError, match=f"{kind} is made of trees"):
        learner_for(type(kind, (), {"__module__": module})())
