"""Pipelines whose preprocessing is fitted together: against scikit-learn fitted on all rows in one place."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    PolynomialFeatures,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from konsil.core import merge
from konsil.core.parameters import pack, views
from konsil.errors import ConfigError, StudyError
from konsil.learners import learner_for
from konsil.learners.sklearn import prepare
from konsil.learners.sklearn.pooled import Pooled

SIZES = (7, 1, 400, 60)


def hospitals(missing=0.1, features=5, seed=0):
    """Unequal hospitals that differ in mean and scale, with features far from 0, one constant, and gaps."""
    rng = np.random.default_rng(seed)
    tables = []
    for number, size in enumerate(SIZES):
        rows = rng.normal(number, 1 + number, (size, features))
        rows[:, 1] = 1e9 + rng.normal(number, 1, size)
        rows[:, 2] *= 1e-7
        rows[:, 3] = 0.1
        rows[:, 4] = 1e6 * np.exp(rows[:, 4] / 4)
        rows[rng.random(rows.shape) < missing] = np.nan
        tables.append(rows)
    return tables


def scaled_pipeline(last=None):
    return make_pipeline(SimpleImputer(), StandardScaler(), last or SGDClassifier(loss="log_loss"))


def prepared(make=scaled_pipeline, members=4, features=5):
    return [prepare(make(), features, classes=[0, 1]) for _ in range(members)]


def merge_all(learners, weights, rule_name="mean", options=None):
    """One round with the rule that nodes use; every learner loads the merge."""
    schema = learners[0].schema()
    chunks = [bytearray(schema.data_bytes) for _ in learners]
    for learner, chunk in zip(learners, chunks, strict=True):
        pack(schema, learner.parameters(), memoryview(chunk))
    rule = merge.rule(rule_name, options or {})
    runs, out = schema.runs(0, schema.data_bytes), bytearray(schema.data_bytes)
    mixing = merge.mixing(rule, merge.gram_chunk(runs, chunks), weights)
    merge.merge_chunk(rule, runs, chunks, weights, memoryview(out), mixing)
    merged = {name: array.copy() for name, array in views(schema, memoryview(out)).items()}
    for learner in learners:
        learner.load(merged)
    return merged


def fit_together(learners, tables, weights=None, **rule):
    """As `Swarm.fit_preprocessing` does at every member; the number of rounds that it took."""
    weights = weights or [1] * len(learners)
    rounds = 0
    while True:
        asked = [
            learner.observe(rows, weight)
            for learner, rows, weight in zip(learners, tables, weights, strict=True)
        ]
        assert len(set(asked)) == 1
        if not asked[0]:
            return rounds
        merge_all(learners, weights, **rule)
        rounds += 1


def fitted(pipeline):
    imputer, scaler = pipeline[0], pipeline[1]
    return {
        "statistics_": imputer.statistics_,
        "mean_": scaler.mean_,
        "var_": scaler.var_,
        "scale_": scaler.scale_,
    }


@pytest.mark.parametrize("weights", [None, [3, 1, 12345, 7]], ids=["alike", "given"])
def test_preprocessing_fitted_together_is_that_of_all_rows_in_one_place(weights):
    tables = hospitals()
    pipelines = prepared()
    assert fit_together([learner_for(pipeline) for pipeline in pipelines], tables, weights) == 3
    pooled = make_pipeline(SimpleImputer(), StandardScaler()).fit(np.concatenate(tables))
    for name, values in fitted(pipelines[0]).items():
        # The constant column's variance is nothing but rounding in both.
        columns = [0, 1, 2, 4] if name == "var_" else [0, 1, 2, 3, 4]
        expected = fitted(pooled)[name]
        np.testing.assert_allclose(values[columns], expected[columns], rtol=1e-9, err_msg=name)
    for pipeline in pipelines[1:]:
        assert all(
            np.array_equal(values, fitted(pipelines[0])[name]) for name, values in fitted(pipeline).items()
        )
    for rows in tables:
        ours, theirs = pipelines[2][:-1].transform(rows), pooled.transform(rows)
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-9)  # 1e-4: the feature at 1e9


def test_fifty_rounds_later_the_statistics_have_not_moved_by_a_bit():
    rng = np.random.default_rng(3)
    pipelines = prepared()
    learners = [learner_for(pipeline) for pipeline in pipelines]
    fit_together(learners, hospitals())
    before = {name: values.copy() for name, values in fitted(pipelines[0]).items()}
    sent = {name: array.copy() for name, array in learners[0].parameters().items() if "sgd" not in name}
    for _ in range(50):
        merge_all(learners, [int(weight) for weight in rng.integers(1, 10_000, len(SIZES))])
        assert all(np.array_equal(values, before[name]) for name, values in fitted(pipelines[1]).items())
        now = learners[3].parameters()
        assert all(np.array_equal(now[name], array) for name, array in sent.items())


def test_a_late_member_gets_the_statistics_with_the_model():
    pipelines = prepared()
    learners = [learner_for(pipeline) for pipeline in pipelines]
    tables = hospitals()
    for learner, rows in zip(learners, tables, strict=True):
        learner.observe(rows, 1)
    merged = merge_all(learners, [1] * 4)
    late = learner_for(prepare(scaled_pipeline(), 5, [0, 1]))
    late.load(merged)
    learners.append(late)
    assert fit_together(learners, [*tables, tables[1]]) == 2
    merged = merge_all(learners, [1] * 5)
    later = prepare(scaled_pipeline(), 5, [0, 1])
    learner = learner_for(later)
    learner.load(merged)
    assert all(np.array_equal(values, fitted(pipelines[0])[name]) for name, values in fitted(later).items())
    assert learner.observe(tables[0], 1) is False


def test_a_member_without_a_row_or_with_one_changes_the_pooled_mean_as_it_should():
    pipelines = prepared(members=2)
    rows = hospitals(missing=0)[3]
    fit_together([learner_for(pipeline) for pipeline in pipelines], [rows, np.empty((0, 5))])
    alone = make_pipeline(SimpleImputer(), StandardScaler()).fit(rows)
    np.testing.assert_allclose(pipelines[1][1].mean_, alone[1].mean_, rtol=1e-9)


def test_a_pipeline_is_not_fitted_before_the_swarm_has_fitted_it():
    pipeline = scaled_pipeline()
    with pytest.raises(ConfigError, match="was not prepared"):
        learner_for(pipeline)
    rows = hospitals(missing=0)[2]
    pipeline.fit(rows, np.arange(len(rows)) % 2)
    prepare(pipeline, 5, [0, 1])
    assert not pipeline[-1].coef_.any()
    with pytest.raises(NotFittedError):
        pipeline[:-1].transform(rows)
    learner = learner_for(pipeline)
    unfitted = {name: array.copy() for name, array in learner.parameters().items()}
    with pytest.raises(NotFittedError):
        pipeline[:-1].transform(rows)
    learner.observe(rows, 1)
    merge_all([learner], [1])
    pipeline[0].transform(rows)
    learner.observe(rows, 1)
    merge_all([learner], [1])
    with pytest.raises(NotFittedError):  # the mean is known, the variance is not
        pipeline[1].transform(rows)
    fit_together([learner], [rows])
    pipeline.predict(rows)
    learner.load(unfitted)
    with pytest.raises(NotFittedError):
        pipeline.predict(rows)


def test_a_pipeline_that_was_fitted_alone_is_told_so():
    rows = hospitals(missing=0)[2]
    pipeline = scaled_pipeline().fit(rows, np.arange(len(rows)) % 2)
    with pytest.raises(ConfigError, match="was fitted on this hospital's own rows alone") as refusal:
        learner_for(pipeline)
    assert "not known" not in refusal.value.what
    assert refusal.value.do.startswith("Use `konsil.prepare(pipeline, n_features, classes)`, which forgets")


def test_what_travels_is_named_after_the_steps():
    learner = learner_for(prepared(members=1)[0])
    mark, *names = sorted(learner.parameters())
    assert mark.startswith("konsil.classes:")
    assert names == [
        "sgdclassifier.coef_",
        "sgdclassifier.intercept_",
        "simpleimputer.mean.count",
        "simpleimputer.mean.sum",
        "standardscaler.mean.count",
        "standardscaler.mean.sum",
        "standardscaler.variance.count",
        "standardscaler.variance.sum",
    ]


def test_only_sums_and_counts_of_a_members_rows_are_in_what_it_sends():
    learner = learner_for(prepared(members=1)[0])
    rows = hospitals()[2]
    learner.observe(rows, 4)
    sent = learner.parameters()
    np.testing.assert_allclose(sent["simpleimputer.mean.sum"], np.nansum(rows, axis=0) / 4)
    np.testing.assert_allclose(sent["simpleimputer.mean.count"], (~np.isnan(rows)).sum(axis=0) / 4)
    assert not any(array.any() for name, array in sent.items() if not name.startswith("simpleimputer"))


def test_the_model_at_the_end_has_the_width_that_reaches_it():
    def make():
        return make_pipeline(
            SimpleImputer(),
            PolynomialFeatures(2, include_bias=False),
            FunctionTransformer(np.arcsinh),
            "passthrough",
            StandardScaler(with_mean=False),
            MLPClassifier((3,)),
        )

    tables = hospitals()
    pipelines = prepared(make)
    assert pipelines[0][-1].coefs_[0].shape == (20, 3)
    assert fit_together([learner_for(pipeline) for pipeline in pipelines], tables) == 3
    pooled = make()[:-1].fit(np.concatenate(tables))
    np.testing.assert_allclose(pipelines[0][:-1].transform(tables[0]), pooled.transform(tables[0]), rtol=1e-6)
    labels = np.arange(len(tables[2])) % 2
    pipelines[0][-1].partial_fit(pipelines[0][:-1].transform(tables[2]), labels)
    assert pipelines[0].predict_proba(tables[2]).shape == (400, 2)


def test_a_pipeline_of_preprocessing_alone_can_be_fitted_together():
    pipelines = [prepare(make_pipeline(SimpleImputer(), StandardScaler()), 5) for _ in SIZES]
    tables = hospitals()
    fit_together([learner_for(pipeline) for pipeline in pipelines], tables)
    pooled = make_pipeline(SimpleImputer(), StandardScaler()).fit(np.concatenate(tables))
    np.testing.assert_allclose(pipelines[0][1].mean_, pooled[1].mean_, rtol=1e-9)


def test_given_categories_need_nothing_to_be_fitted():
    pipeline = make_pipeline(
        OneHotEncoder(categories=[["f", "m"], ["A", "B", "AB", "0"]], sparse_output=False), SGDClassifier()
    )
    prepare(pipeline, 2, [0, 1])
    learner = learner_for(pipeline)
    rows = np.array([["m", "AB"], ["f", "0"]], dtype=object)
    assert learner.observe(rows, 1) is False
    assert pipeline[-1].coef_.shape == (1, 6)
    assert pipeline.predict(rows).shape == (2,)


def columns_apart(numbers, words):
    """What a clinical table needs: numbers with gaps, words with gaps, and a column that stays as it is."""
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
            (
                "words",
                make_pipeline(
                    SimpleImputer(strategy="constant", fill_value="unknown"),
                    OneHotEncoder(categories=[["f", "m", "unknown"], ["0", "A", "AB", "B", "unknown"]]),
                ),
                words,
            ),
        ],
        remainder="passthrough",
        sparse_threshold=0,
    )


def mixed_tables(frame):
    rng = np.random.default_rng(9)
    tables = []
    for number, size in enumerate(SIZES):
        rows = np.empty((size, 5), dtype=object)
        rows[:, 0] = np.where(rng.random(size) < 0.2, np.nan, rng.normal(50 + number, 9, size))
        rows[:, 1] = rng.choice(["f", "m"], size)
        rows[:, 2] = rng.normal(1e5 * number, 9, size)
        rows[:, 3] = rng.choice(["A", "B", "AB", "0"], size)
        rows[:, 4] = rng.integers(0, 2, size).astype(float)
        rows[rng.random(size) < 0.1, 3] = np.nan
        tables.append(frame(rows))
    return tables


@pytest.mark.parametrize("named", [True, False])
def test_columns_that_are_treated_apart_are_fitted_together_too(named):
    names = ["age", "sex", "platelets", "group", "fever"]
    columns = (["age", "platelets"], ["sex", "group"]) if named else ([0, 2], slice(1, 4, 2))
    pandas = pytest.importorskip("pandas") if named else None

    def frame(rows):
        if pandas is None:
            return rows
        types = {"age": float, "platelets": float, "fever": float}
        return pandas.DataFrame(rows, columns=names).astype(types)

    def make():
        return make_pipeline(columns_apart(*columns), StandardScaler(with_std=False), SGDClassifier())

    tables = mixed_tables(frame)
    pipelines = [prepare(make(), names if named else 5, [0, 1]) for _ in tables]
    learners = [learner_for(pipeline) for pipeline in pipelines]
    assert "columntransformer.numbers.standardscaler.variance.sum" in learners[0].parameters()
    with pytest.raises(NotFittedError):
        pipelines[0][:-1].transform(tables[0])
    assert fit_together(learners, tables) == 4
    merge_all(learners, [3, 1, 4, 1])
    everyone = pandas.concat(tables) if pandas else np.concatenate(tables)
    pooled = make()[:-1].fit(everyone)
    for rows in tables:
        for pipeline in pipelines:
            ours = np.asarray(pipeline[:-1].transform(rows), dtype=float)
            np.testing.assert_allclose(ours, pooled.transform(rows).astype(float), rtol=1e-9, atol=1e-9)
    assert pipelines[0][-1].coef_.shape == (1, 2 + 3 + 5 + 1)
    pipelines[0][-1].partial_fit(pipelines[0][:-1].transform(tables[2]), np.arange(400) % 2)
    assert pipelines[0].predict(tables[0]).shape == (7,)


def test_a_pipeline_inside_another_is_fitted_together_too():
    inner = make_pipeline(SimpleImputer(), "passthrough", StandardScaler())
    pipeline = prepare(make_pipeline(inner, SGDClassifier()), 5, [0, 1])
    rows = hospitals()[2]
    assert fit_together([learner_for(pipeline)], [rows]) == 3
    pooled = make_pipeline(SimpleImputer(), StandardScaler()).fit(rows)
    np.testing.assert_allclose(pipeline[:-1].transform(rows), pooled.transform(rows), rtol=1e-9, atol=1e-4)


def test_a_column_that_only_one_member_has_is_fitted_from_its_rows():
    tables = hospitals()
    for rows in tables[1:]:
        rows[:, 0] = np.nan
    pipelines = prepared()
    fit_together([learner_for(pipeline) for pipeline in pipelines], tables)
    assert pipelines[2][0].statistics_[0] == pytest.approx(np.nanmean(tables[0][:, 0]), rel=1e-9)


def test_a_number_can_stand_for_what_is_missing():
    rows = hospitals(missing=0)[2]
    rows[::3, 0] = -1
    pipeline = prepare(make_pipeline(SimpleImputer(missing_values=-1), SGDClassifier()), 5, [0, 1])
    fit_together([learner_for(pipeline)], [rows])
    expected = SimpleImputer(missing_values=-1).fit(rows).statistics_
    np.testing.assert_allclose(pipeline[0].statistics_, expected, rtol=1e-9)


def test_steps_whose_names_begin_alike_are_told_apart():
    pipeline = Pipeline([("model.scale", StandardScaler()), ("model", SGDClassifier())])
    learner = learner_for(prepare(pipeline, 5, [0, 1]))
    fit_together([learner], [hospitals(missing=0)[2]])
    learner.load({name: array + 1 for name, array in learner.parameters().items() if "coef" in name})
    assert (pipeline[-1].coef_ == 1).all()


def test_a_column_of_which_nobody_has_a_value_is_named():
    tables = hospitals()
    for rows in tables:
        rows[:, 2] = np.nan
    learners = [learner_for(pipeline) for pipeline in prepared()]
    with pytest.raises(ConfigError, match=r"any value in these .* 'simpleimputer' gets, counted from 0: 2\."):
        fit_together(learners, tables)
    kept = prepared(lambda: make_pipeline(SimpleImputer(keep_empty_features=True), SGDClassifier()))
    fit_together([learner_for(pipeline) for pipeline in kept], tables)
    assert kept[0][0].statistics_[2] == 0.0
    assert kept[0][:-1].transform(tables[0]).shape == (7, 5)


def test_a_merge_that_fits_nothing_ends_with_an_error_and_not_in_a_circle():
    empty = np.empty((0, 5))
    with pytest.raises(ConfigError, match="no member had any"):
        fit_together([learner_for(pipeline) for pipeline in prepared()], [empty] * 4)
    at_home = [learner_for(pipeline, local=("simpleimputer.*",)) for pipeline in prepared()]
    with pytest.raises(ConfigError, match="`local` pattern"):
        fit_together(at_home, hospitals())


def test_asking_again_before_a_merge_puts_the_same_sums_in():
    learner = learner_for(prepared(members=1)[0])
    empty = np.empty((0, 5))
    assert learner.observe(empty, 1)
    assert learner.observe(empty, 1)
    rows = hospitals()[2]
    assert learner.observe(rows, 1)
    first = learner.parameters()["simpleimputer.mean.sum"].copy()
    assert learner.observe(rows, 1)
    assert np.array_equal(learner.parameters()["simpleimputer.mean.sum"], first)


def test_rows_are_left_as_they_are_even_by_steps_that_work_in_place():
    rows = hospitals()[2]
    before = rows.copy()
    pipelines = [
        prepare(
            make_pipeline(SimpleImputer(copy=False), StandardScaler(copy=False), SGDClassifier()), 5, [0, 1]
        )
    ]
    fit_together([learner_for(pipeline) for pipeline in pipelines], [rows])
    np.testing.assert_array_equal(rows, before)


def test_rows_that_are_no_table_of_the_right_width_are_refused():
    learner = learner_for(prepared(members=1)[0])
    with pytest.raises(ConfigError, match=r"shape \(3, 4\).*prepared for 5 columns"):
        learner.observe(np.ones((3, 4)), 1)
    with pytest.raises(ConfigError, match="table of numbers: could not convert"):
        learner.observe(np.full((3, 5), "high", dtype=object), 1)


def test_a_data_frames_columns_are_known_to_the_fitted_pipeline():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(hospitals()[2], columns=list("abcde"))
    pipeline = prepared(members=1, features=frame.columns)[0]
    learner = learner_for(pipeline)
    fit_together([learner], [frame])
    merge_all([learner], [1])
    pipeline.predict(frame)  # every warning is an error here
    with pytest.raises(ValueError, match="feature names"):
        pipeline.predict(frame.rename(columns={"a": "z"}))


def test_rows_whose_columns_are_in_another_order_than_was_prepared_are_refused():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(hospitals()[2], columns=list("abcde"))
    learner = learner_for(prepared(members=1, features=frame.columns)[0])
    with pytest.raises(ConfigError, match=r"Column 1 of the rows, counted from 0, is 'c'; .* for 'b' there"):
        learner.observe(frame[list("acbde")], 1)
    assert learner.observe(frame, 1)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (MinMaxScaler(), "smallest and the largest"),
        (MaxAbsScaler(), "smallest and the largest"),
        (RobustScaler(), "quantiles"),
        (QuantileTransformer(), "quantiles"),
        (SimpleImputer(strategy="median"), "strategy='median'"),
        (SimpleImputer(add_indicator=True), "add_indicator=False"),
        (SimpleImputer(missing_values=None), "NaN or a number"),
        (OneHotEncoder(), "hospitals meet different ones"),
        (OneHotEncoder(categories=[["a", "b"]], min_frequency=3), "rare"),
        (make_pipeline(StandardScaler(), RobustScaler()), "quantiles"),
        (ColumnTransformer([("a", PCA(2), [0, 1])]), "covariances"),
        (ColumnTransformer([("a", "passthrough", [0])], remainder=RobustScaler()), "quantiles"),
        (ColumnTransformer([("a", StandardScaler(), max)]), "by a function"),
        (FeatureUnion([("a", StandardScaler())]), "a ColumnTransformer"),
        (PolynomialFeatures(degree=-1), "made-up row of 5 columns"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_step_that_sums_cannot_fit_is_refused_with_the_reason(step, why):
    with pytest.raises(ConfigError, match=why) as refusal:
        prepare(make_pipeline(step, SGDClassifier()), 5, [0, 1])
    assert refusal.value.safe
    assert refusal.value.do


def test_a_step_that_nobody_knows_is_refused():
    class OwnScaler(BaseEstimator):
        fit = transform = None

    with pytest.raises(ConfigError, match="OwnScaler is a step of which Konsil does not know"):
        prepare(make_pipeline(OwnScaler(), SGDClassifier()), 5, [0, 1])


def test_a_rule_that_measures_distances_is_not_blinded_by_large_features():
    tables = [rows[:, [0, 4]] * 1e6 for rows in hospitals(missing=0)]
    pipelines = prepared(features=2)
    learners = [learner_for(pipeline) for pipeline in pipelines]
    fit_together(learners, tables)
    for pipeline, slope in zip(pipelines, (1.0, 1.001, 0.999, 40.0), strict=True):
        pipeline[-1].coef_[:] = slope
    merge_all(learners, [1] * 4, "geometric_median")
    assert abs(pipelines[0][-1].coef_ - 1).max() < 0.01


@pytest.mark.parametrize("rule", ["median", "geometric_median", "trimmed_mean"])
def test_a_robust_rule_fits_something_near_what_most_members_have(rule):
    rng = np.random.default_rng(5)
    tables = [rng.normal(10, 2, (100, 5)) for _ in range(4)] + [np.full((100, 5), 1e7)]
    pipelines = prepared(members=5)
    fit_together([learner_for(pipeline) for pipeline in pipelines], tables, rule_name=rule)
    np.testing.assert_allclose(pipelines[0][1].mean_, 10, rtol=0.1)
    np.testing.assert_allclose(pipelines[0][1].scale_, 2, rtol=0.2)


def test_a_mean_comes_back_from_its_mantissa_and_exponent():
    values = np.array([0.0, 1.0, -1e9, 1e-300, 1e300, -3.7e-9, 5e-324, 12345.678])
    pooled = Pooled.empty(len(values))
    pooled.observe(values[None], 1)
    pooled.take(pooled.sum.copy(), pooled.count.copy())
    np.testing.assert_allclose(pooled.mean, values, rtol=3e-14)
    assert np.abs(pooled.sum).max() < 1.0
    assert np.abs(pooled.count).max() < 2.0


def test_what_a_merge_rounded_off_is_put_back():
    pooled = Pooled.empty(3)
    pooled.observe(np.array([[1 / 3, -1e9 / 7, 0.1]]), 1)
    pooled.take(pooled.sum.copy(), pooled.count.copy())
    sums, counts = pooled.sum.copy(), pooled.count.copy()
    for deviation in (2e-15, -2e-15):
        pooled.take(sums * (1 + deviation), counts * (1 + deviation))
        assert np.array_equal(pooled.sum, sums)
        assert np.array_equal(pooled.count, counts)


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("sum", -1.0, "a mean of squares below 0"),
        ("sum", 1e119, "what no rows have"),
        ("count", -1e100, "what no rows have"),
        ("count", -1e119, "what no rows have"),
    ],
)
def test_a_merge_that_gives_a_variance_which_no_rows_have_is_refused_whole(part, value, problem):
    learners = [learner_for(model) for model in prepared(members=1)]
    rows = np.random.default_rng(0).normal(size=(50, 5))
    for _ in range(2):  # the imputer's mean, the scaler's
        learners[0].observe(rows, 1)
        merge_all(learners, [1])
    learners[0].observe(rows, 1)
    before = {name: array.copy() for name, array in learners[0].parameters().items()}
    hostile = {name: array.copy() for name, array in before.items()}
    hostile["sgdclassifier.coef_"] = hostile["sgdclassifier.coef_"] + 1.0
    hostile[f"standardscaler.variance.{part}"][2] = value
    if value > 1:
        hostile["standardscaler.variance.count"][2] = 1e-250
    with pytest.raises(
        StudyError, match=rf"'standardscaler\.variance'.*{problem}.*counted from 0: 2\."
    ) as caught:
        learners[0].load(hostile)
    assert caught.value.fields["columns"] == (2,)
    assert all(np.array_equal(array, before[name]) for name, array in learners[0].parameters().items())


def test_a_variance_that_was_known_cannot_become_negative():
    (model,) = prepared(members=1)
    learner = learner_for(model)
    rows = np.random.default_rng(0).normal(size=(50, 5))
    while learner.observe(rows, 1):
        merge_all([learner], [1])
    scale = model[1].scale_.copy()
    hostile = {name: array.copy() for name, array in learner.parameters().items()}
    hostile["standardscaler.variance.sum"][0] *= -1
    with pytest.raises(StudyError, match="below 0"):
        learner.load(hostile)
    assert np.array_equal(model[1].scale_, scale)
    hostile = {name: array.copy() for name, array in learner.parameters().items()}
    hostile["standardscaler.mean.sum"][0] *= -1  # a mean may be anything
    learner.load(hostile)


def test_the_sums_and_means_of_any_rows_are_possible():
    values = np.array([0.0, 1.0, -1e9, 1e-300, 1e300, -3.7e-9, 5e-324, 12345.678, np.nan])
    pooled = Pooled.empty(len(values))
    pooled.observe(values[None], 2**29 - 1)
    assert pooled.impossible(pooled.sum, pooled.count) == ()
    pooled.take(pooled.sum.copy(), pooled.count.copy())
    assert pooled.impossible(pooled.sum, pooled.count) == ()
