import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score, roc_curve
from sklearn.metrics import log_loss as sklearn_log_loss

from konsil.evaluation import metrics

LABELS = st.lists(st.integers(0, 1), min_size=4, max_size=60).filter(lambda y: 2 <= sum(y) <= len(y) - 2)


def example(seed, patients=80, models=2, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random(patients) < 0.4).astype(int)
    labels[:2], labels[2:4] = 0, 1
    scores = rng.normal(size=(models, patients)) + labels * np.linspace(0.5, 1.5, models)[:, None]
    return labels, np.round(scores, 1 if ties else 9)


def delong_by_definition(labels, scores):
    """DeLong's structural components written out pair by pair."""
    v10, v01 = [], []
    for row in scores:
        x, y = row[labels == 1], row[labels == 0]
        psi = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    return np.mean(v10, axis=1), np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_delong_is_what_its_definition_gives_pair_by_pair(seed, ties):
    labels, scores = example(seed, models=3, ties=ties)
    result = metrics.delong(labels, scores)
    auc, covariance = delong_by_definition(labels, scores)
    np.testing.assert_allclose(result.auc, auc, atol=1e-12)
    np.testing.assert_allclose(result.covariance, covariance, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, data=st.data())
def test_the_auc_is_scikit_learns_whatever_the_ties(labels, data):
    scores = data.draw(st.lists(st.integers(0, 6), min_size=len(labels), max_size=len(labels)))
    assert metrics.delong(labels, [scores]).auc[0] == pytest.approx(roc_auc_score(labels, scores))


def test_delongs_variance_agrees_with_a_bootstrap():
    labels, scores = example(7, patients=300)
    result = metrics.delong(labels, scores)
    rng = np.random.default_rng(0)
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    drawn = []
    for _ in range(800):
        x = positive[:, rng.integers(positive.shape[1], size=positive.shape[1])]
        y = negative[:, rng.integers(negative.shape[1], size=negative.shape[1])]
        drawn.append([(a[:, None] > b[None, :]).mean() for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(result.covariance, np.cov(np.array(drawn).T), rtol=0.25, atol=2e-5)


def test_ranks_of_equal_values_are_shared():
    np.testing.assert_array_equal(metrics.midranks(np.array([5.0, 1.0, 5.0, 9.0])), [2.5, 1.0, 2.5, 4.0])


def test_the_interval_covers_the_true_auc_about_95_times_in_100():
    # Two normals one deviation apart: the true AUC is Phi(1 / sqrt 2) = 0.7602.
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 25)
    covered = 0
    for _ in range(400):
        interval = metrics.auc_interval(metrics.delong(labels, [rng.normal(size=50) + labels]))
        covered += interval.low <= 0.7602 <= interval.high
    assert 0.92 <= covered / 400 <= 0.985


def test_a_perfect_auc_on_few_patients_does_not_claim_certainty():
    interval = metrics.auc_interval(metrics.delong([0, 0, 0, 1, 1, 1, 1], [[1, 2, 3, 4, 5, 6, 7]]))
    assert interval.value == interval.high == 1.0
    assert interval.low == pytest.approx(0.025 ** (1 / 3))


def test_an_auc_of_nothing_mirrors_a_perfect_one():
    interval = metrics.auc_interval(metrics.delong([1, 1, 0, 0], [[1, 2, 3, 4]]))
    assert interval == (0.0, 0.0, pytest.approx(1 - 0.025**0.5))


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, data=st.data())
def test_an_interval_lies_in_0_to_1_around_its_estimate(labels, data):
    scores = data.draw(st.lists(st.floats(0, 1), min_size=len(labels), max_size=len(labels)))
    interval = metrics.auc_interval(metrics.delong(labels, [scores]))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_two_equal_models_do_not_differ():
    labels, scores = example(3, models=1)
    result = metrics.delong(labels, np.vstack([scores, scores]))
    assert metrics.paired_p_value(result, 0, 1) == 1.0
    assert metrics.mean_contrast([result], (1, -1)) == (0.0, 0.0, 0.0)


def test_a_clear_difference_has_a_small_p_and_an_interval_above_0():
    labels, scores = example(5, patients=400)
    result = metrics.delong(labels, [scores[1], -scores[1]])
    assert metrics.paired_p_value(result, 0, 1) < 1e-6
    assert metrics.mean_contrast([result], (1, -1)).low > 0


def test_a_paired_difference_is_narrower_than_an_unpaired_one_for_models_that_agree():
    labels, scores = example(8, patients=200, models=1)
    alike = scores[0] + np.random.default_rng(0).normal(scale=0.3, size=200)
    result = metrics.delong(labels, [scores[0], alike])
    paired = result.covariance[0, 0] + result.covariance[1, 1] - 2 * result.covariance[0, 1]
    assert paired < 0.5 * (result.covariance[0, 0] + result.covariance[1, 1])


def test_a_mean_over_hospitals_has_the_variance_of_independent_means():
    results = [metrics.delong(*example(seed)) for seed in (1, 2, 3, 4)]
    mean = metrics.mean_contrast(results, (1, 0))
    assert mean.value == pytest.approx(np.mean([r.auc[0] for r in results]))
    expected = 1.959964 * np.sqrt(sum(r.covariance[0, 0] for r in results)) / 4
    assert mean.high - mean.value == pytest.approx(expected, rel=1e-6)


def test_a_mean_of_aucs_never_promises_more_than_1():
    labels, scores = np.repeat([0, 1], 4), np.array([[0, 1, 2, 4.5, 4, 5, 6, 7]])
    assert metrics.mean_contrast([metrics.delong(labels, scores)], (1.0,)).high == 1.0


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([1, 1, 1], "only 0 negative among 3 held-out patients"),
        ([0, 0, 1], "only 1 positive among 3 held-out patients"),
        ([0, 0, 1, 1], ""),
    ],
)
def test_too_few_of_a_class_is_said_in_words(labels, word):
    assert metrics.why_no_auc(labels) == word
    if word:
        with pytest.raises(ValueError, match=word):
            metrics.delong(labels, [range(len(labels))])


@pytest.mark.parametrize("scores", [[[0.1, 0.2, float("nan"), 0.3]], [[0.1, 0.2]]])
def test_scores_that_are_not_one_finite_number_a_patient_are_refused(scores):
    with pytest.raises(ValueError, match="finite"):
        metrics.delong([0, 0, 1, 1], scores)


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_brier_and_log_loss_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels, p = rng.integers(0, 2, 50), rng.random(50)
    assert metrics.accuracy(labels, p) == pytest.approx(accuracy_score(labels, p >= 0.5))
    assert metrics.brier(labels, p) == pytest.approx(brier_score_loss(labels, p))
    assert metrics.log_loss(labels, p) == pytest.approx(sklearn_log_loss(labels, p))


def test_a_certain_and_wrong_probability_costs_much_but_not_infinity():
    assert 30 < metrics.log_loss([1, 0], [0.0, 1.0]) < 40


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, data=st.data())
def test_the_roc_curve_is_scikit_learns_and_its_area_the_auc(labels, data):
    scores = data.draw(st.lists(st.integers(0, 8), min_size=len(labels), max_size=len(labels)))
    false_rate, true_rate = metrics.roc(labels, scores)
    expected_false, expected_true, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected_false)
    np.testing.assert_allclose(true_rate, expected_true)
    area = float(np.diff(false_rate) @ (true_rate[1:] + true_rate[:-1]) / 2)
    assert area == pytest.approx(metrics.delong(labels, [scores]).auc[0])


def test_a_roc_curve_of_one_class_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        metrics.roc([1, 1], [0.2, 0.3])
