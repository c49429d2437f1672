"""Reads the data sets' files as tables, one a hospital. Knows files and units, not splits or models."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from konsil.errors import ConfigError

MISSING = frozenset({"", "NA", "?"})


@dataclass(frozen=True)
class Table:
    """A hospital's patients as they were recorded.

    ``values``: float64 [patients, features], NaN where missing. ``labels``: int64 [patients], 1 is positive.
    """

    values: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


# --- leukaemia: six French university hospitals ----------------------------------------------------

LEUKAEMIA_FEATURES = (
    "age", "WBC_G_L", "MCV_fL", "MCHC_g_L", "ANC_percent", "ANC_G_L", "Lymphocytes_percent",
    "Lymphocytes_G_L", "Monocytes_percent", "Monocytes_G_L", "Platelets_G_L", "PT_percent",
    "Fibrinogen_g_L", "LDH_UI_L",
)  # fmt: skip

_LEUKAEMIA_LOGARITHMIC = frozenset(
    {"WBC_G_L", "ANC_G_L", "Lymphocytes_G_L", "Monocytes_G_L", "Platelets_G_L", "LDH_UI_L"}
)
"""Cell counts and an enzyme: they span orders of magnitude between patients."""

MCHC_G_DL_BELOW = 100.0
"""A mean corpuscular haemoglobin concentration below this is in g/dL: nobody lives with less than 200 g/L,
nor with 100 g/dL. Two hospitals record g/dL and one mixes both units, which its own standard deviation
cannot heal; each hospital can apply this rule alone."""

LEUKAEMIA_HOSPITALS = ("clermont", "cochin", "grenoble", "lyon", "mondor", "nantes")


def read_leukaemia(data: Path | None) -> dict[str, Table]:
    """AML against the other acute leukaemias: six French university hospitals, 14 laboratory values.

    Raises:
        ConfigError: no folder was named, or a file is missing or not as it should be.
    """
    folder = folder_of(data, "aipal-leukaemia", "leukaemia")
    tables = {}
    for hospital in LEUKAEMIA_HOSPITALS:
        path = folder / f"{hospital}.csv"
        header, *rows = _records(path)
        if tuple(header) != ("Response", *LEUKAEMIA_FEATURES):
            raise _unexpected(path, f"its columns are {', '.join(header)}")
        values = _numbers(path, [row[1:] for row in rows], len(LEUKAEMIA_FEATURES))
        for column, feature in enumerate(LEUKAEMIA_FEATURES):
            if feature in _LEUKAEMIA_LOGARITHMIC:
                values[:, column] = np.log1p(values[:, column])
            if feature == "MCHC_g_L":
                recorded = values[:, column]
                values[:, column] = np.where(recorded < MCHC_G_DL_BELOW, 10 * recorded, recorded)
        labels = np.array([row[0] == "AML" for row in rows], dtype=np.int64)
        tables[hospital] = Table(values, labels)
    return tables


# --- heart disease: four hospitals -----------------------------------------------------------------

_HEART_COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope",
    "ca", "thal", "num",
)  # fmt: skip

_HEART_LEVELS = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}
"""Codes without an order: each level becomes a column of its own."""

_HEART_ZERO_IS_MISSING = frozenset({"trestbps", "chol"})
"""A living patient has neither a blood pressure nor a cholesterol of 0: it stands for "not measured"."""

HEART_HOSPITALS = {
    "cleveland": "processed.cleveland.data",
    "hungarian": "processed.hungarian.data",
    "swiss": "processed.switzerland.data",
    "va": "processed.va.data",
}


def _heart_features() -> tuple[str, ...]:
    names: list[str] = []
    for column in _HEART_COLUMNS[:-1]:
        levels = _HEART_LEVELS.get(column)
        names += [column] if levels is None else [f"{column}={level}" for level in levels]
    return tuple(names)


HEART_FEATURES = _heart_features()


def read_heart(data: Path | None) -> dict[str, Table]:
    """Any coronary vessel narrowed against none: four hospitals, 13 findings.

    Raises:
        ConfigError: no folder was named, or a file is missing or not as it should be.
    """
    folder = folder_of(data, "uci-heart-disease", "heart")
    tables = {}
    for hospital, file in HEART_HOSPITALS.items():
        path = folder / file
        recorded = _numbers(path, _records(path), len(_HEART_COLUMNS))
        columns: list[npt.NDArray[np.float64]] = []
        for index, name in enumerate(_HEART_COLUMNS[:-1]):
            column = recorded[:, index]
            if name in _HEART_ZERO_IS_MISSING:
                column = np.where(column == 0, np.nan, column)
            if name in _HEART_LEVELS:
                missing = np.isnan(column)
                columns += [np.where(missing, np.nan, column == level) for level in _HEART_LEVELS[name]]
            else:
                columns.append(column)
        tables[hospital] = Table(np.column_stack(columns), (recorded[:, -1] > 0).astype(np.int64))
    return tables


# --- breast cancer: one set that ships with scikit-learn, dealt out over four hospitals -------------

BREAST_HOSPITALS = {
    "northgate": (72, 184),
    "riverside": (77, 94),
    "hillview": (48, 49),
    "lakeside": (15, 30),
}
"""Hospital -> (malignant, benign): 45, 30, 17 and 8 % of the patients, 28 to 49 % of them malignant."""

_BREAST_DEAL_SEED = 569
"""The deal is fixed: a hospital's patients are what they are; only the hold-out depends on the seed."""


def read_breast_cancer(_data: Path | None) -> dict[str, Table]:
    """Malignant against benign: one series that ships with scikit-learn, dealt out to four hospitals."""
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415 - costs a second; only this set needs it

    values, target = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(_BREAST_DEAL_SEED)
    malignant, benign = (rng.permutation(np.flatnonzero(target == code)) for code in (0, 1))
    tables = {}
    for hospital, (positives, negatives) in BREAST_HOSPITALS.items():
        rows = np.sort(np.concatenate([malignant[:positives], benign[:negatives]]))
        malignant, benign = malignant[positives:], benign[negatives:]
        tables[hospital] = Table(values[rows].astype(np.float64), (target[rows] == 0).astype(np.int64))
    return tables


_BREAST_MEASURES = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points",
    "symmetry", "fractal dimension",
)  # fmt: skip

BREAST_FEATURES = tuple(
    f"{statistic} {measure}" for statistic in ("mean", "error of", "worst") for measure in _BREAST_MEASURES
)


# --- files -----------------------------------------------------------------------------------------


def folder_of(data: Path | None, folder: str, name: str) -> Path:
    """Where a data set's files are.

    Raises:
        ConfigError: no folder was named.
    """
    if data is None:
        raise ConfigError(
            f"The data set '{name}' is not part of Konsil and no data folder was named.",
            safe="Nothing was started.",
            do=f"Name the folder that holds '{folder}': --data FOLDER.",
            name=name,
        )
    # Either the folder of all sets or the set's own folder: people try both.
    return data / folder if (data / folder).is_dir() or data.name != folder else data


def _records(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            records = [record for record in csv.reader(lines) if record]
    except OSError as error:
        raise ConfigError(
            f"The file {path} cannot be read: {error.strerror}.",
            safe="Nothing was started.",
            do="Check the data folder: --data FOLDER.",
            path=str(path),
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unexpected(path, f"it is not text in columns ({error})") from error
    if not records:
        raise _unexpected(path, "it is empty")
    return records


def _numbers(path: Path, records: Sequence[Sequence[str]], columns: int) -> npt.NDArray[np.float64]:
    """The records as float64 [records, columns], NaN where a value is missing."""
    for line, record in enumerate(records, start=1):
        if len(record) != columns:
            raise _unexpected(path, f"record {line} has {len(record)} values instead of {columns}")
    try:
        numbers = [[np.nan if text in MISSING else float(text) for text in record] for record in records]
    except ValueError as error:
        raise _unexpected(path, f"a value is not a number ({error})") from error
    return np.array(numbers, dtype=np.float64).reshape(len(records), columns)


def _unexpected(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"The file {path} is not as it should be: {problem}.",
        safe="Nothing was started.",
        do="Fetch the data set again; its source stands in the report and in the data set's SOURCE.txt.",
        path=str(path),
    )
