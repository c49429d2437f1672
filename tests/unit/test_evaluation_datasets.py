import os
from pathlib import Path

import numpy as np
import pytest

from konsil.errors import ConfigError
from konsil.evaluation import tables
from konsil.evaluation.datasets import DATASETS, describe, load, load_raw
from konsil.evaluation.preparation import CLIP, Hospital, Rows, measure, prepare_locally, prepare_together

PATIENTS = {
    "breast-cancer": {"northgate": 256, "riverside": 171, "hillview": 97, "lakeside": 45},
    "heart": {"cleveland": 303, "hungarian": 294, "swiss": 123, "va": 200},
    "leukaemia": {"lyon": 424, "nantes": 130, "grenoble": 431, "clermont": 255, "cochin": 73, "mondor": 97},
}
POSITIVE = {"breast-cancer": 212, "heart": 139 + 106 + 115 + 149, "leukaemia": 203 + 35 + 212 + 156 + 74 + 65}


@pytest.fixture(params=sorted(DATASETS))
def name(request):
    return request.param


@pytest.fixture
def data():
    folder = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "aipal-leukaemia").is_dir():
        problem = f"NOT TESTED: the clinical data sets are not at {folder}; set KONSIL_DATA to their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    return folder


def parts(hospital):
    return hospital.train, hospital.validation, hospital.test


def rows_of(values):
    """Rows as bytes, NaN included, so that they can be counted."""
    return sorted(row.tobytes() for row in values)


def test_no_patient_is_lost_and_none_is_in_two_parts(name, data):
    whole = describe(name).read(data)
    for hospital in load_raw(name, data, seed=3).values():
        together = np.concatenate([part.values for part in parts(hospital)])
        assert rows_of(together) == rows_of(whole[hospital.name].values)


def test_patients_and_positives_are_as_the_source_says(name, data):
    hospitals = load(name, data, seed=0)
    counts = {hospital: sum(len(part) for part in parts(h)) for hospital, h in hospitals.items()}
    assert counts == PATIENTS[name]
    assert sum(int(part.labels.sum()) for h in hospitals.values() for part in parts(h)) == POSITIVE[name]


def test_every_hospital_holds_out_30_percent_of_each_class(name, data):
    for hospital in load(name, data, seed=5).values():
        for label in (0, 1):
            held_out = int((hospital.test.labels == label).sum())
            everyone = sum(int((part.labels == label).sum()) for part in parts(hospital))
            assert abs(held_out - 0.3 * everyone) <= 0.5
            assert held_out >= 2


def test_the_seed_decides_who_is_held_out(name, data):
    one, same, other = (load(name, data, seed=seed) for seed in (1, 1, 2))
    for hospital, h in one.items():
        np.testing.assert_array_equal(h.test.values, same[hospital].test.values)
        assert not np.array_equal(h.test.values, other[hospital].test.values)


def test_prepared_rows_have_no_gaps_and_training_rows_one_scale(name, data):
    for hospital in load(name, data, seed=0).values():
        for part in parts(hospital):
            assert np.isfinite(part.values).all()
            assert np.abs(part.values).max() <= CLIP
        assert np.abs(hospital.train.values.mean(axis=0)).max() < 0.2  # clipping moves a mean a little
        assert hospital.train.values.std(axis=0).max() < 1 + 1e-9


def test_features_have_names_and_columns_alike(name, data):
    for hospital in load(name, data, seed=0).values():
        assert len(hospital.features) == len(set(hospital.features)) == hospital.train.values.shape[1]


def test_mchc_is_in_g_per_l_for_every_patient_though_three_hospitals_record_g_per_dl(data):
    column = DATASETS["leukaemia"].features.index("MCHC_g_L")
    for table in DATASETS["leukaemia"].read(data).values():
        mchc = table.values[:, column]
        assert np.nanmin(mchc) > 200
        assert np.nanmax(mchc) < 410


def test_a_cholesterol_of_0_is_a_gap_and_not_a_value(data):
    swiss = load_raw("heart", data, seed=0)["swiss"]
    assert np.isnan(swiss.train.values[:, swiss.features.index("chol")]).all()


def test_another_hospitals_unit_does_not_change_prepared_rows():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(5, 2, (40, 3)), np.repeat([0, 1], 20)
    values[3, 1] = np.nan

    def hospital(factor):
        rows = [
            Rows(values[place] * factor, labels[place])
            for place in (slice(0, 20), slice(20, 30), slice(30, 40))
        ]
        return Hospital("h", ("a", "b", "c"), *rows)

    one, ten = (prepare_locally({"h": hospital(factor)})["h"] for factor in (1.0, 10.0))
    np.testing.assert_allclose(one.test.values, ten.test.values)


def test_scales_come_from_training_rows_only():
    labels = np.array([0, 1])
    quiet = Rows(np.array([[0.0], [2.0]]), labels)
    loud = Rows(np.array([[1e6], [np.nan]]), labels)
    prepared = prepare_locally({"h": Hospital("h", ("a",), quiet, loud, loud)})["h"]
    np.testing.assert_array_equal(prepared.train.values, [[-1.0], [1.0]])
    np.testing.assert_array_equal(prepared.test.values, [[CLIP], [0.0]])


def test_a_feature_never_recorded_becomes_0():
    scale = measure(np.array([[np.nan, 1.0], [np.nan, 3.0]]))
    filled = scale.apply(Rows(np.array([[np.nan, np.nan]]), np.array([1])))
    np.testing.assert_array_equal(filled.values, [[0.0, 0.0]])


def test_pooled_scales_keep_a_true_difference_between_hospitals():
    labels = np.array([0, 1])
    young, old = (Rows(np.array([[age], [age + 2.0]]), labels) for age in (30.0, 70.0))
    hospitals = {
        name: Hospital(name, ("age",), rows, rows, rows) for name, rows in (("a", young), ("b", old))
    }
    together = prepare_together(hospitals)
    assert together["b"].train.values.mean() - together["a"].train.values.mean() > 1.5
    alone = prepare_locally(hospitals)
    np.testing.assert_allclose(alone["a"].train.values, alone["b"].train.values)


def test_an_unknown_data_set_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no data set 'lungs'.*breast-cancer, heart, leukaemia"):
        load("lungs", None, seed=0)


def test_a_data_set_without_a_folder_asks_for_one():
    with pytest.raises(ConfigError, match="--data FOLDER"):
        load("leukaemia", None, seed=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"clermont\.csv cannot be read"):
        load("leukaemia", tmp_path, seed=0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("a,b\n1,2\n", "its columns are a, b"),
        (
            ",".join(("Response", *tables.LEUKAEMIA_FEATURES)) + "\nAML,1\n",
            "record 1 has 1 values instead of 14",
        ),
        (
            ",".join(("Response", *tables.LEUKAEMIA_FEATURES)) + "\nAML" + ",x" * 14 + "\n",
            "a value is not a number",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused_with_the_reason(tmp_path, text, problem):
    folder = tmp_path / "aipal-leukaemia"
    folder.mkdir()
    (folder / "clermont.csv").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load("leukaemia", tmp_path, seed=0)
