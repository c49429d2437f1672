import re
from html.parser import HTMLParser

import numpy as np
import pytest
from msgspec.structs import replace

from konsil.core.rules.settings import StudySettings
from konsil.core.rules.state import Commitment, Part, RoundRecord, ScoreRecord
from konsil.errors import ConfigError
from konsil.evaluation import report
from konsil.evaluation.metrics import Interval
from konsil.evaluation.result import (
    HospitalResult,
    LedgerEvent,
    MemberTraffic,
    StudyResult,
    from_json,
    to_json,
)

HOSTILE = "<script>alert('x')</script> & $x_$"
NAMES = (HOSTILE, "lima", "oslo")
DIGEST = "ab12" * 16


def hospital(name, seed):
    rng = np.random.default_rng(seed)
    labels = np.array([0] * 6 + [1] * 5 if name != "oslo" else [1] * 7)

    def scores():
        return tuple(np.clip(rng.random(len(labels)) * 0.6 + 0.4 * labels, 0, 1).tolist())

    return HospitalResult(
        name=name, train_patients=20, train_positives=9, validation_patients=5, labels=tuple(labels.tolist()),
        local={other: scores() for other in NAMES}, swarm=scores(), central=scores(), central_together=scores(),
    )  # fmt: skip


def record(number, absent=(), auc=0.8, struck=()):
    present = [name for name in NAMES if name not in absent and name not in struck]
    return RoundRecord(
        number=number, attempt=0, base=DIGEST, digest=f"{number:064x}",
        roster={name: Commitment(DIGEST, 20, 1000 + number) for name in present},
        weights=dict.fromkeys(present, 20), parts=(Part(present[0], DIGEST),),
        absent=dict.fromkeys(absent, "silent for 60 s"), opened_s=1000, merging_s=1001, accepted_s=1002,
        scores={name: ScoreRecord(5, 0.5, {} if auc is None else {"auc": auc}) for name in present},
        struck=struck,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return StudyResult(
        title="Blood & bone", study="aml", question="Is it AML?", positive="AML", negative="others",
        source="a register", note="a note", model="a perceptron", finished_s=1_700_000_000, seed=0,
        settings=StudySettings(name="aml", members=NAMES, rounds=3, every_epochs=5),
        hospitals=tuple(hospital(name, seed) for seed, name in enumerate(NAMES)),
        rounds=(record(1), record(2, absent=("lima",)), record(3, absent=("lima",))),
        round_s=(0.5, 0.25, 0.75), first_merge_s=2.5, total_s=3.5,
        traffic=tuple(MemberTraffic(member=name, bytes_out=1_500_000, bytes_in=900) for name in NAMES),
        events=(LedgerEvent(height=1, time_s=1000, member="lima", sentence="agrees to <em>aml</em>", digest=DIGEST),),
        ledger="One member keeps it.", swarm="demo", genesis=DIGEST, models=dict.fromkeys(NAMES, DIGEST),
        final_digest=DIGEST, verify="konsil ledger verify", versions={"konsil": "0.1.0"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write_report(path, result)
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects what a browser would do with the page."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetches, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        # xlink:href within an SVG that starts with # points into the page itself.
        self.fetches += [
            value for key, value in attrs
            if key.split(":")[-1] in {"src", "href", "srcset", "data", "action", "poster"} and not value.startswith("#")
        ]  # fmt: skip

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_fetches_nothing(page, read):
    assert read.fetches == []
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"@import|url\((?!#)", page)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(read.tags)


def test_a_hostile_hospital_name_is_text_and_nothing_else(page, read):
    assert HOSTILE not in page
    assert HOSTILE in "".join(read.words)
    assert "<em>" not in page


def test_every_hospital_and_figure_is_on_the_page(page, read):
    text = "".join(read.words)
    for name in NAMES:
        assert name in text
    assert page.count("<svg") == 5
    assert len(set(re.findall(r'role="img" aria-label="([^"]+)"', page))) == 5


def test_the_page_says_what_was_measured_and_how_to_check_it(page, read, result):
    text = "".join(read.words)
    c = report.compare(result.hospitals)
    for interval in (c.swarm, c.local, c.central, c.local_at_home, c.central_together):
        assert report.interval(interval) in text
    for fact in (
        DIGEST,
        "konsil ledger verify",
        "2.5 s",
        "4.5 MB",
        "2023-11-14 22:13:20 UTC",
        "Blood & bone",
    ):
        assert fact in text


def test_a_hospital_without_an_auc_is_named_with_the_reason(read):
    assert "No AUC: only 0 negative among 7 held-out patients." in "".join(read.words)
    assert "oslo is not in the means" in "".join(read.words)


def test_a_hospital_with_few_of_a_class_carries_a_caution(result):
    c = report.compare(result.hospitals)
    few = replace(c, hospitals=(replace(c.hospitals[0], positives=2), *c.hospitals[1:]))
    assert "holds out only 2 patients of one class" in report.sentences(result, few)[-1]
    assert "holds out only" not in "".join(report.sentences(result, c))


def test_absences_stand_with_their_reason_as_one_run(read):
    assert "lima, rounds 2 to 3: silent for 60 s" in "".join(read.words)


def test_a_report_written_twice_is_the_same_to_the_byte(result, page):
    assert report.render(result, report.compare(result.hospitals)) == page


def test_a_report_without_rounds_is_a_bare_comparison(result):
    bare = StudyResult(
        title="t", study="s", question="q", positive="p", negative="n", source="x", model="m", finished_s=0,
        seed=0, settings=StudySettings(name="s"), hospitals=result.hospitals,
    )  # fmt: skip
    text = report.render(bare, report.compare(bare.hospitals))
    assert text.count("<svg") == 2
    assert "How it went" not in text


def test_a_result_survives_json(result):
    assert from_json(to_json(result)) == result


def test_a_report_that_cannot_be_written_leaves_nothing_behind(result, tmp_path):
    place = tmp_path / "report.html"
    place.mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        report.write_report(place, result)
    assert list(tmp_path.iterdir()) == [place]


def test_learning_prefers_the_auc_and_falls_back_to_the_loss():
    assert report.learning([record(1)]).label.startswith("AUC")
    curve = report.learning([record(1, auc=None), record(2, absent=("lima",), auc=None)])
    assert curve.label.startswith("loss")
    assert curve.mean == [0.5, 0.5]
    assert np.isnan(curve.scores["lima"][1])
    one, other, *_ = record(1).roster
    uneven = replace(
        record(1),
        weights={one: 30, other: 10},
        scores={one: ScoreRecord(5, 0.5, {"auc": 0.8}), other: ScoreRecord(5, 0.5, {"auc": 0.4})},
    )
    assert report.learning([uneven]).mean == [pytest.approx(0.7)]  # as in the merge, wherever a mean is shown
    assert report.learning([]) is None


def test_the_grid_tells_in_out_struck_and_not_there_apart():
    blocks = report.grid([record(1, absent=("lima",)), record(2, struck=("oslo",))])
    kinds = {name: [cell.kind for cell in cells] for name, cells in blocks[0].cells.items()}
    assert kinds["lima"] == ["out", "in"]
    assert kinds["oslo"] == ["in", "struck"]


def test_many_rounds_are_cut_into_blocks_that_fit_the_page():
    blocks = report.grid([record(number) for number in range(1, 61)])
    assert [len(block.rounds) for block in blocks] == [25, 25, 10]


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_000_000, "2.0 MB"), (5e13, "50.0 TB")],
)
def test_bytes_are_written_as_people_read_them(count, words):
    assert report.size(count) == words


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.05, "helped"), (-0.05, -0.01, "did harm"), (-0.01, 0.02, "made no clear difference")],
)
def test_the_summary_claims_no_more_than_the_interval(result, low, high, verdict):
    c = replace(report.compare(result.hospitals), swarm_minus_local=Interval((low + high) / 2, low, high))
    assert report.sentences(result, c)[0].startswith(f"Learning together {verdict}.")
