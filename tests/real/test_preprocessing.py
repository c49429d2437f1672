"""Preprocessing that real nodes fit together: uneven merge weights, and a member that comes late."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import konsil
from konsil.core.rules import StudySettings
from konsil.errors import SchemaMismatch
from konsil.learners.sklearn import prepare

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

WAIT_S = 120.0
"""For another thread, on a busy machine; none takes nearly as long."""


def rows_of(place):
    rng = np.random.default_rng(place)
    rows = rng.normal(100 * place, 1 + place, (40 * (place + 1), 3))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows, (rng.random(len(rows)) < 0.5).astype(int)


def test_all_end_with_the_statistics_of_those_that_fitted_them(site):
    members = ("berlin", "bonn", "lyon")
    swarm = site.swarm(*members)
    swarm.start()
    swarm.propose(
        StudySettings(
            name="aml",
            members=members,
            min_members=2,
            quorum=2,
            rounds=8,
            every_epochs=1,
            weighting="given",
            given={"berlin": 3, "bonn": 1000, "lyon": 7},
            silence_s=30,
            merge_s=10,
        )
    )
    fitted, joined = Event(), Event()

    def train(place):
        rows, labels = rows_of(place)
        pipeline = make_pipeline(SimpleImputer(), StandardScaler(), SGDClassifier(random_state=0))
        prepare(pipeline, 3, [0, 1])
        late = members[place] == "lyon"
        assert not late or fitted.wait(WAIT_S)
        with konsil.join("aml", pipeline, node=swarm.directory(members[place])) as session:
            if late:
                joined.set()
            session.fit_preprocessing(rows)
            # Its own node may be a round behind those that have fitted everything.
            assert session.round >= 4 if late else session.round == 4
            fitted.set()
            while not session.finished:
                pipeline[-1].partial_fit(pipeline[:-1].transform(rows), labels)
                assert session.round < 6 or joined.wait(WAIT_S)
                session.epoch(examples=len(rows))
        return pipeline

    with ThreadPoolExecutor(3) as threads:
        pipelines = list(threads.map(train, range(3)))

    pooled = make_pipeline(SimpleImputer(), StandardScaler())
    pooled.fit(np.concatenate([rows_of(0)[0], rows_of(1)[0]]))
    for pipeline in pipelines:
        np.testing.assert_allclose(pipeline[0].statistics_, pooled[0].statistics_, rtol=1e-9)
        np.testing.assert_allclose(pipeline[1].scale_, pooled[1].scale_, rtol=1e-9)
        for ours, first in zip(pipeline, pipelines[0], strict=True):
            for name in ("statistics_", "mean_", "var_", "scale_", "coef_", "intercept_"):
                assert np.array_equal(getattr(ours, name, ()), getattr(first, name, ()))
    assert set(swarm.control("bonn").state().studies["aml"].history[-1].roster) == set(members)


def test_a_hospital_with_its_columns_in_another_order_is_told_so_and_not_merged(site):
    members = ("berlin", "bonn")
    swarm = site.swarm(*members)
    swarm.start()
    settings = StudySettings(name="aml", members=members, every_epochs=1, silence_s=30, merge_s=10)
    swarm.propose(settings)

    def model(columns, classes=(0, 1)):
        return prepare(make_pipeline(StandardScaler(), SGDClassifier()), columns, classes)

    def join(place, columns, classes=(0, 1)):
        node = swarm.directory(members[place])
        return konsil.join("aml", model(columns, classes), node=node, timeout_s=WAIT_S)

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(join, 0, ["age", "blasts"])
        with pytest.raises(SchemaMismatch, match="The columns of the rows differ, or their order"):
            join(1, ["blasts", "age"])
        with pytest.raises(SchemaMismatch, match="The classes differ"):
            join(1, ["age", "blasts"], ("AML", "other"))
        with join(1, ["age", "blasts"]) as session, first.result(WAIT_S) as other:
            assert session.digest == other.digest
