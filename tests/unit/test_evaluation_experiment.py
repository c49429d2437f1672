import numpy as np
import pytest

from konsil.evaluation import experiment, models
from konsil.evaluation.datasets import load
from konsil.evaluation.preparation import Hospital, Rows


@pytest.fixture(scope="module")
def hospitals():
    return load("breast-cancer", None, seed=0)


def blobs(seed, patients=40):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], patients // 2)
    return Rows(rng.normal(size=(patients, 3)) + labels[:, None], labels)


def tiny():
    return {
        name: Hospital(name, ("a", "b", "c"), *(blobs(place * 3 + k) for k in range(3)))
        for place, name in enumerate("ab")
    }


def test_a_fresh_model_is_the_same_everywhere_for_one_seed_and_has_no_opinion_yet():
    one, same, other = models.classifier(3, 1), models.classifier(3, 1), models.classifier(3, 2)
    for a, b in zip(models.parameters(one), models.parameters(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(models.parameters(one)[0], models.parameters(other)[0])
    np.testing.assert_allclose(
        models.probabilities(one, Rows(np.zeros((1, 3)), np.array([1]))), 0.5, atol=0.2
    )


def test_an_epoch_sees_every_patient_once_in_batches_of_at_most_32():
    batches = models.batches(100, np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(100))
    assert {len(batch) for batch in batches} == {25}


def test_training_twice_with_one_seed_gives_one_model():
    one, again = (models.train(blobs(0), seed=4, epochs=3) for _ in range(2))
    for a, b in zip(models.parameters(one), models.parameters(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_swarm_of_one_hospital_and_one_round_is_that_hospitals_model():
    alone = {"a": tiny()["a"]}
    swarm = experiment.train_swarm(alone, seed=0, rounds=1, epochs=2)
    local = models.classifier(3, 0)
    rng = np.random.default_rng([0, 0])
    for _ in range(2):
        models.train_epoch(local, alone["a"].train, rng)
    for a, b in zip(models.parameters(swarm), models.parameters(local), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_the_merge_weighs_hospitals_by_their_patients():
    two = tiny()
    big = Hospital("b", ("a", "b", "c"), blobs(9, patients=120), blobs(1), blobs(2))
    alone = [experiment.train_swarm({name: h}, 0, rounds=1, epochs=0) for name, h in two.items()]
    merged = experiment.train_swarm({"a": two["a"], "b": big}, 0, rounds=1, epochs=1)
    own = []
    for place, rows in enumerate((two["a"].train, big.train)):
        model = models.classifier(3, 0)
        models.train_epoch(model, rows, np.random.default_rng([0, place]))
        own.append(models.parameters(model))
    for a, b, c in zip(*own, models.parameters(merged), strict=True):
        np.testing.assert_allclose(c, 0.25 * a + 0.75 * b, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(*(models.parameters(model)[0] for model in alone))


def test_pooled_rows_are_all_hospitals_training_rows(hospitals):
    rows = experiment.pooled(hospitals)
    assert len(rows) == sum(len(h.train) for h in hospitals.values())
    assert rows.labels.sum() == sum(h.train.labels.sum() for h in hospitals.values())


def test_every_model_scores_every_hospitals_held_out_patients():
    two = tiny()
    local = {name: models.train(h.train, 0, epochs=1) for name, h in two.items()}
    results = experiment.hospital_results(
        two, local, local["a"], local["b"], together=two, central_together=local["a"]
    )
    for result in results:
        assert set(result.local) == set(two)
        assert len(result.labels) == len(result.swarm) == len(result.central) == len(two[result.name].test)
        assert result.swarm == result.local["a"] == result.central_together
        assert all(0 <= p <= 1 for p in result.swarm)
