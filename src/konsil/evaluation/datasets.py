"""Clinical data sets whose hospitals become the members of a swarm.

Each is read as tables, one a hospital; `load` holds out patients at every hospital and lets each hospital
prepare its own rows (see `preparation`). Where a data set's files are is the caller's to say.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from konsil.errors import ConfigError
from konsil.evaluation import tables
from konsil.evaluation.preparation import Hospital, Rows, prepare_locally

TEST_FRACTION = 0.30
"""Held out at every hospital, of each class, and touched by nothing but the final comparison."""

VALIDATION_FRACTION = 0.20
"""Of what is left: scores the rounds and chose the model's settings; nobody trains on it."""


@dataclass(frozen=True)
class Dataset:
    """A question, and where the answers come from.

    ``folder``: of its files in the data folder; empty where the set comes with a dependency.
    """

    name: str
    title: str
    question: str
    positive: str
    negative: str
    source: str
    features: tuple[str, ...]
    hospitals: tuple[str, ...]
    read: Callable[[Path | None], dict[str, tables.Table]]
    note: str = ""
    folder: str = ""


def load(name: str, data: Path | None, seed: int) -> dict[str, Hospital]:
    """The hospitals of a data set, split by the seed, each prepared from its own training rows only.

    Args:
        name: a key of `DATASETS`.
        data: the folder with the data sets' folders; None where the set comes with a dependency.
        seed: decides which patients are held out.

    Raises:
        ConfigError: no such data set, or its files are missing or not as they should be.
    """
    return prepare_locally(load_raw(name, data, seed))


def load_raw(name: str, data: Path | None, seed: int) -> dict[str, Hospital]:
    """As `load`, without preparation: NaN where missing, values as the tables have them.

    Args:
        name: a key of `DATASETS`.
        data: the folder with the data sets' folders.
        seed: decides which patients are held out.
    """
    dataset = describe(name)
    hospitals = {}
    for hospital, table in sorted(dataset.read(data).items()):
        # The split depends on the hospital's name, not on its place, so that one more hospital moves nobody.
        rng = np.random.default_rng([seed, zlib.crc32(hospital.encode())])
        test = _stratified(table.labels, TEST_FRACTION, rng)
        rest = np.setdiff1d(np.arange(len(table.labels)), test)
        validation = rest[_stratified(table.labels[rest], VALIDATION_FRACTION, rng)]
        train = np.setdiff1d(rest, validation)
        hospitals[hospital] = Hospital(
            name=hospital,
            features=dataset.features,
            train=Rows(table.values[train], table.labels[train]),
            validation=Rows(table.values[validation], table.labels[validation]),
            test=Rows(table.values[test], table.labels[test]),
        )
    return hospitals


def describe(name: str) -> Dataset:
    """What a data set asks and where it comes from.

    Raises:
        ConfigError: there is no data set of this name.
    """
    try:
        return DATASETS[name]
    except KeyError:
        raise ConfigError(
            f"There is no data set '{name}'.",
            safe="Nothing was started.",
            do=f"Choose one of: {', '.join(sorted(DATASETS))}.",
            name=name,
        ) from None


def require_files(name: str, data: Path | None) -> None:
    """See that a data set's files can be where they are said to be, before anything is started.

    Raises:
        ConfigError: no such data set, no folder was named, or it has none of the set's files.
    """
    dataset = describe(name)
    if not dataset.folder:
        return
    if data is None or not tables.folder_of(data, dataset.folder, name).is_dir():
        where = "no data folder was named" if data is None else f"{data} holds no folder '{dataset.folder}'"
        raise ConfigError(
            f"The data set '{name}' is not part of Konsil, and {where}.",
            safe="Nothing was started.",
            do=f"Name the folder that holds '{dataset.folder}': --data FOLDER, or KONSIL_DATA.",
            name=name,
        )


def _stratified(
    labels: npt.NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Sorted positions of about this fraction of each class."""
    chosen = []
    for label in (0, 1):
        positions = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(positions[: round(fraction * len(positions))])
    return np.sort(np.concatenate(chosen))


DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        dataset.name: dataset
        for dataset in (
            Dataset(
                name="breast-cancer",
                title="Breast cancer from fine-needle aspirates",
                question="Is a lump in the breast malignant, going by 30 measures of its cells?",
                positive="malignant",
                negative="benign",
                source="Wisconsin Diagnostic Breast Cancer, Street et al. 1993, as in scikit-learn",
                features=tables.BREAST_FEATURES,
                hospitals=tuple(sorted(tables.BREAST_HOSPITALS)),
                read=tables.read_breast_cancer,
                note="One real series; its division into four hospitals of uneven size and mix is made up.",
            ),
            Dataset(
                name="heart",
                title="Coronary heart disease",
                question="Is any coronary vessel narrowed by more than half, going by 13 findings?",
                positive="any vessel narrowed",
                negative="none",
                source="UCI Heart Disease; Detrano et al., Am J Cardiol 1989;64:304-310",
                features=tables.HEART_FEATURES,
                hospitals=tuple(sorted(tables.HEART_HOSPITALS)),
                read=tables.read_heart,
                folder="uci-heart-disease",
                note="Four real hospitals. Some findings were never recorded at some of them, and the Swiss"
                " hospital has 8 patients without disease among 123.",
            ),
            Dataset(
                name="leukaemia",
                title="Acute myeloid leukaemia from routine laboratory values",
                question="Is an acute leukaemia myeloid (AML), going by age and 13 laboratory values?",
                positive="AML",
                negative="ALL or APL",
                source="Alcazer et al., Lancet Digit Health 2024;6:e323-e333 (AIPAL)",
                features=tables.LEUKAEMIA_FEATURES,
                hospitals=tuple(sorted(tables.LEUKAEMIA_HOSPITALS)),
                read=tables.read_leukaemia,
                folder="aipal-leukaemia",
                note="Six real hospitals. MCHC is in g/L at three, in g/dL at two and in both at Nantes;"
                " values below 100 were taken as g/dL.",
            ),
        )
    }
)
"""Name -> data set."""
