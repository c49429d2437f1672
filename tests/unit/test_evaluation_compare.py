import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from konsil.errors import StudyError
from konsil.evaluation.compare import compare
from konsil.evaluation.result import HospitalResult

NAMES = ("kyoto", "lima", "oslo")


def hospital(name, seed, labels=None, names=NAMES, together=True):
    rng = np.random.default_rng(seed)
    labels = np.array([0] * 15 + [1] * 12 if labels is None else labels)

    def scores(strength):
        return tuple((1 / (1 + np.exp(-rng.normal(size=len(labels)) - strength * labels))).tolist())

    return HospitalResult(
        name=name,
        train_patients=40 + seed,
        train_positives=11,
        validation_patients=9,
        labels=tuple(int(label) for label in labels),
        local={other: scores(0.8) for other in names},
        swarm=scores(2.0),
        central=scores(2.2),
        central_together=scores(2.4) if together else (),
    )


@pytest.fixture
def hospitals():
    return tuple(hospital(name, seed) for seed, name in enumerate(NAMES))


def auc(labels, scores):
    return roc_auc_score(labels, scores)


def test_the_headline_averages_every_local_model_at_every_hospital(hospitals):
    c = compare(hospitals)
    everywhere = np.mean([[auc(h.labels, h.local[name]) for name in NAMES] for h in hospitals])
    at_home = np.mean([auc(h.labels, h.local[h.name]) for h in hospitals])
    assert c.local.value == pytest.approx(everywhere)
    assert c.local_at_home.value == pytest.approx(at_home)
    assert c.local.value != pytest.approx(c.local_at_home.value)


def test_swarm_and_central_are_means_over_the_hospitals(hospitals):
    c = compare(hospitals)
    for arm in ("swarm", "central", "central_together"):
        expected = np.mean([auc(h.labels, getattr(h, arm)) for h in hospitals])
        assert getattr(c, arm).value == pytest.approx(expected)


def test_differences_are_those_of_the_means(hospitals):
    c = compare(hospitals)
    assert c.swarm_minus_local.value == pytest.approx(c.swarm.value - c.local.value)
    assert c.swarm_minus_home.value == pytest.approx(c.swarm.value - c.local_at_home.value)
    assert c.swarm_minus_central.value == pytest.approx(c.swarm.value - c.central.value)


def test_pooled_figures_are_over_all_patients_in_one_list(hospitals):
    c = compare(hospitals)
    labels = np.concatenate([h.labels for h in hospitals])
    swarm = np.concatenate([h.swarm for h in hospitals])
    assert c.arms["swarm"].pooled_auc.value == pytest.approx(auc(labels, swarm))
    assert c.arms["swarm"].brier == pytest.approx(np.mean((swarm - labels) ** 2))
    local = [auc(labels, np.concatenate([h.local[name] for h in hospitals])) for name in NAMES]
    assert c.arms["local"].pooled_auc.value == pytest.approx(np.mean(local))


def test_each_hospitals_row_holds_its_own_model(hospitals):
    for h, row in zip(hospitals, compare(hospitals).hospitals, strict=True):
        assert row.local.value == pytest.approx(auc(h.labels, h.local[h.name]))
        assert (row.patients, row.positives) == (27, 12)
        assert row.swarm_minus_local.value == pytest.approx(row.swarm.value - row.local.value)
        assert 0 <= row.p_swarm_local <= 1


def test_a_hospital_with_one_class_is_left_out_of_the_means_and_named(hospitals):
    with_one_class = (*hospitals[:2], hospital("oslo", 2, labels=[1] * 10))
    c = compare(with_one_class)
    assert c.left_out == {"oslo": "only 0 negative among 10 held-out patients"}
    assert c.hospitals[2].swarm is None
    assert c.swarm.value == pytest.approx(np.mean([auc(h.labels, h.swarm) for h in hospitals[:2]]))
    assert c.arms["swarm"].pooled_auc.value == pytest.approx(
        auc(
            np.concatenate([h.labels for h in with_one_class]),
            np.concatenate([h.swarm for h in with_one_class]),
        )
    )


def test_without_any_auc_there_is_a_clear_error():
    with pytest.raises(StudyError, match="two patients of each class"):
        compare((hospital("oslo", 0, labels=[1, 1, 1], names=("oslo",)),))


def test_the_second_central_arm_may_be_missing():
    c = compare(tuple(hospital(name, seed, together=False) for seed, name in enumerate(NAMES)))
    assert c.central_together is None
    assert set(c.arms) == {"local", "swarm", "central"}
