"""The measuring: intervals against published and textbook values, and a study small enough to check by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, multinomial

from music_ddpo.core.params import EvaluationParams
from music_ddpo.measuring.leftovers import put_away
from music_ddpo.measuring.statistics import Estimate, bootstrap, paired_change, proportion
from music_ddpo.measuring.study import Study
from music_ddpo.measuring.summary import in_words
from music_ddpo.measuring.tables import markdown, metrics, picture, plots

SETTINGS = EvaluationParams(clips_per_emotion=4, eta=1.0, confidence=0.95, bootstrap=2000)
EMOTIONS = ["happy", "sad"] * 4
QUADRANT = {"happy": "Q1", "sad": "Q3"}

# Clips 0, 2, 4, 6 are happy and 1, 3, 5, 7 are sad.
#                     happy sad  h  s  h  s  h  s
HEARD_ORIGINAL = [1, 0, 0, 1, 0, 0, 0, 0]  # happy 1/4, sad 1/4
HEARD_TRAINED = [1, 1, 1, 1, 1, 0, 0, 1]  # happy 3/4, sad 3/4
SIMILAR_ORIGINAL = [0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4]  # happy 0.2, sad 0.3
SIMILAR_TRAINED = [0.3, 0.2, 0.4, 0.5, 0.2, 0.2, 0.5, 0.5]  # happy 0.35, sad 0.35
REFERENCE = {"clap": {"piano": {"happy": 0.4, "sad": 0.5}}, "emopia": {"piano": {"happy": 1.0, "sad": 0.5}}}


def scores(heard: list[int], similarity: list[float]) -> pd.DataFrame:
    quadrant = [QUADRANT[e] for e in EMOTIONS]
    predicted = [q if right else "Q4" for q, right in zip(quadrant, heard, strict=True)]
    return pd.DataFrame(
        {
            "emotion": EMOTIONS, "instrument": "piano", "quadrant": quadrant,
            "clap_headline": "similarity", "emopia_headline": "accuracy",
            "emopia_predicted": predicted, "emopia_correct": heard, "emopia_value": [x - 1.0 for x in heard],
            "clap_predicted": predicted, "clap_correct": heard, "clap_value": similarity,
        }
    )  # fmt: skip


def study(reference: dict = REFERENCE) -> Study:
    original = scores(HEARD_ORIGINAL, SIMILAR_ORIGINAL)
    trained = {"clap": scores(HEARD_ORIGINAL, SIMILAR_TRAINED), "emopia": scores(HEARD_TRAINED, SIMILAR_ORIGINAL)}
    rewards = {"clap": ["clap"], "emopia": ["emopia"]}
    return Study(original, trained, rewards, reference, SETTINGS, seed=0)


def leaves(tree: dict) -> list:
    return [x for value in tree.values() for x in (leaves(value) if isinstance(value, dict) else [value])]


# Intervals


@pytest.mark.parametrize(
    ("successes", "low", "high"), [(0, 0.0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1.0)], ids=str
)
def test_the_wilson_interval_has_its_published_values(successes, low, high):
    estimate = proportion(successes, 10, 0.95)

    assert (estimate.value, estimate.clips) == (successes / 10, 10)
    assert estimate.low == pytest.approx(low, abs=5e-5)
    assert estimate.high == pytest.approx(high, abs=5e-5)


def boot(columns, statistic, seed: int = 0) -> Estimate:
    return bootstrap(columns, statistic, 0.95, 2000, seed)


def test_the_bootstrap_of_a_large_samples_mean_agrees_with_normal_theory():
    sample = np.random.default_rng(0).exponential(size=2000)

    estimate = boot((sample,), lambda mean: mean)

    half = 1.96 * sample.std() / np.sqrt(2000)
    assert estimate.value == pytest.approx(sample.mean())
    assert estimate.low == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_the_bootstrap_repeats_itself_for_the_same_seed():
    sample = np.random.default_rng(0).normal(size=30)

    def interval(seed: int) -> tuple[float, float]:
        estimate = boot((sample,), lambda mean: mean, seed)
        return estimate.low, estimate.high

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)


def test_identical_columns_differ_by_exactly_nothing():
    column = np.random.default_rng(0).normal(size=50)

    estimate = boot((column, column), lambda a, b: b - a)

    assert estimate.value == 0
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.signed() == "+0.00 [?]"
    assert estimate.as_dict("gain") == {"gain": 0, "gain_low": None, "gain_high": None}


def changed(n: int, gained: int, lost: int) -> Estimate:
    """The change of n clips, of which some are right only after or only before."""
    before, after = np.zeros(n), np.zeros(n)
    after[:gained] = 1
    before[gained : gained + lost] = 1
    return paired_change(before, after, 0.95)


def test_tangos_interval_has_its_published_values():
    estimate = changed(21, 7, 1)  # Bentur et al., 2009; Fagerland, Lydersen and Laake, 2014

    assert estimate.value == pytest.approx(6 / 21)
    assert (estimate.low, estimate.high) == pytest.approx((0.026, 0.517), abs=5e-4)


def score(n: int, gained: int, lost: int, change: float) -> float:
    """The score statistic, with the likelihood maximised numerically under the change."""

    def loss(losing: float) -> float:
        cells = ((gained, losing + change), (lost, losing), (n - gained - lost, 1 - 2 * losing - change))
        return -sum(k * np.log(max(p, 1e-300)) for k, p in cells if k)

    losing = minimize_scalar(loss, bounds=(max(0, -change), (1 - change) / 2), method="bounded").x
    return (gained - lost - n * change) / np.sqrt(n * (2 * losing + change - change**2))


@pytest.mark.parametrize(("n", "gained", "lost"), [(16, 0, 0), (25, 6, 2), (25, 1, 0), (8, 0, 4), (100, 40, 3)])
def test_tangos_interval_ends_where_the_score_test_does(n, gained, lost):
    estimate = changed(n, gained, lost)

    assert score(n, gained, lost, estimate.low) == pytest.approx(1.96, abs=2e-3)
    assert score(n, gained, lost, estimate.high) == pytest.approx(-1.96, abs=2e-3)


def test_sixteen_clips_without_a_change_leave_a_change_possible():
    assert changed(16, 0, 0).signed() == "+0.00 [-0.19, +0.19]"
    assert changed(16, 16, 0).signed() == "+1.00 [+0.61, +1.00]"
    assert changed(16, 0, 16).signed() == "-1.00 [-1.00, -0.61]"


def test_tangos_interval_covers_the_true_change_of_few_clips_about_as_often_as_it_says():
    n, gaining, losing = 16, 0.3, 0.05
    covered = 0.0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            estimate = changed(n, gained, lost)
            if estimate.low <= gaining - losing <= estimate.high:
                covered += multinomial.pmf([gained, lost, n - gained - lost], n, [gaining, losing, 0.65])

    assert 0.93 < covered < 0.98


def test_pairing_narrows_the_interval_of_correlated_columns():
    rng = np.random.default_rng(0)
    before = rng.normal(size=200)
    after = before + 0.2 * rng.normal(size=200)

    def width(second: np.ndarray) -> float:
        estimate = boot((before, second), lambda a, b: b - a)
        return estimate.high - estimate.low

    # Deviations of the difference are 0.2 in pairs and sqrt(2) without: a seventh.
    assert width(after) < 0.25 * width(rng.permutation(after))


# A study


def test_estimates_are_shares_for_an_accuracy_and_means_for_a_similarity():
    accuracy = study().estimate("emopia", "emopia", "sad")
    similarity = study().estimate("clap", "clap", "happy")

    assert (accuracy.value, accuracy.clips) == (0.75, 4)
    expected = binomtest(3, 4).proportion_ci(method="wilson")
    assert (accuracy.low, accuracy.high) == pytest.approx((expected.low, expected.high))
    assert similarity.value == pytest.approx(0.35)
    assert 0.2 <= similarity.low < 0.35 < similarity.high <= 0.5  # the lowest and the highest of its clips


def test_a_gain_is_trained_less_original():
    assert study().gain("emopia", "emopia").value == pytest.approx(0.5)
    assert study().gain("emopia", "emopia", "happy").value == pytest.approx(0.5)
    assert study().gain("clap", "clap").value == pytest.approx(0.1)
    assert study().gain("clap", "clap", "sad").value == pytest.approx(0.05)


def test_an_adapter_that_changed_nothing_gains_exactly_nothing():
    gain = study().gain("emopia", "clap")

    assert gain.value == 0
    bound = 1.96**2 / (8 + 1.96**2)
    assert (gain.low, gain.high) == pytest.approx((-bound, bound), abs=1e-4)


def test_the_gap_closed_is_the_gain_over_the_distance_to_real_recordings():
    closed = study().gap_closed("clap", "clap")

    assert study().real("clap") == pytest.approx(0.45)
    assert closed.value == pytest.approx(0.1 / (0.45 - 0.25))
    assert closed.low < closed.value < closed.high


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"clap": {"piano": {"happy": 0.4}}},
        {"clap": {"violin": {"happy": 0.4, "sad": 0.5}}},
        {"clap": {"piano": {"happy": 0.2, "sad": 0.3}}},
    ],
    ids=["nothing measured", "an emotion missing", "an instrument missing", "no gap"],
)
def test_gap_closed_is_none_if_the_gap_is_unknown_or_not_significant(reference):
    assert study(reference).gap_closed("clap", "clap") is None


def test_metrics_hold_the_numbers_of_the_study():
    result = metrics(study())

    heard = result["judged_by_emopia"]
    assert list(heard) == ["original", "trained_with_clap", "trained_with_emopia", "real_recordings"]
    assert (heard["original"]["accuracy"], heard["original"]["clips"]) == (0.25, 8)
    assert (heard["original"]["happy"]["accuracy"], heard["original"]["happy"]["clips"]) == (0.25, 4)
    assert heard["trained_with_emopia"]["accuracy"] == 0.75
    assert heard["trained_with_emopia"]["gain"] == 0.5
    assert heard["trained_with_emopia"]["gap_closed"] == 1.0
    assert heard["trained_with_emopia"]["sad"]["gain"] == 0.5
    assert heard["trained_with_clap"]["gain"] == 0
    assert heard["real_recordings"] == {"accuracy": 0.75}
    similar = result["judged_by_clap"]
    assert similar["original"]["similarity"] == 0.25
    assert similar["trained_with_clap"]["similarity"] == 0.35
    assert similar["trained_with_clap"]["happy"]["similarity"] == 0.35
    assert similar["trained_with_clap"]["gain"] == 0.1
    assert similar["trained_with_clap"]["gap_closed"] == 0.5
    assert similar["trained_with_emopia"]["gain"] == 0
    assert similar["real_recordings"] == {"similarity": 0.45}


def test_metrics_are_finite_numbers_that_json_keeps():
    result = metrics(study())

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {type(x) for x in leaves(result)} <= {int, float, type(None)}
    assert set(result["judged_by_clap"]["original"]) == {
        "similarity", "similarity_low", "similarity_high", "clips", "happy", "sad",
    }  # fmt: skip


def test_the_tables_show_the_numbers_of_the_study():
    lines = markdown(study()).splitlines()
    low, high = binomtest(6, 8).proportion_ci(method="wilson")

    assert "| emotion | original | trained with clap | trained with emopia | real recordings | clips |" in lines
    (everything,) = (line for line in lines if line.startswith("| **all** |"))
    assert everything.endswith(f"| 0.75 [{low:.2f}, {high:.2f}] | 0.75 | 8 |")
    (summary,) = (line for line in lines if line.startswith("| clap | clap similarity |"))
    assert "| 0.25 [" in summary
    assert "| 0.35 [" in summary
    assert "| +0.10 [" in summary
    assert "| 0.45 | 0.50 [" in summary
    (transfer,) = (line for line in lines if line.startswith("| emopia | +"))
    assert transfer.startswith("| emopia | +0.00 [?] | +0.50 [")


def test_the_rows_of_a_table_have_as_many_cells_as_its_head():
    width = 0
    for line in markdown(study({})).splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line


def test_confusion_plots_pair_what_was_asked_for_with_what_was_heard():
    confusion = plots(study())["confusion/trained_with_emopia-by-emopia.csv"]

    counts = confusion.value_counts().to_dict()
    assert counts == {("Q1", "Q1"): 3, ("Q1", "Q4"): 1, ("Q3", "Q3"): 3, ("Q3", "Q4"): 1}


def test_an_adapter_of_a_mixture_is_measured_by_each_part():
    original = scores(HEARD_ORIGINAL, SIMILAR_ORIGINAL)
    both = {"both": scores(HEARD_TRAINED, SIMILAR_TRAINED)}
    mixed = Study(original, both, {"both": ["clap", "emopia"]}, REFERENCE, SETTINGS, seed=0)
    rows = [line for line in markdown(mixed).splitlines() if line.startswith("| both | ")]
    assert [row.split(" | ")[1] for row in rows[:2]] == ["clap similarity", "emopia accuracy"]


def test_the_picture_shows_every_model_and_emotion():
    svg = picture(plots(study())["accuracy.csv"])
    assert svg.startswith("<svg")
    assert all(word in svg for word in ("original", "trained with clap", "trained with emopia", "happy", "sad", "all"))
    assert svg == picture(plots(study())["accuracy.csv"])


def test_what_a_former_reward_has_left_is_put_away_and_nothing_else(tmp_path):
    for reward in ("clap", "emopia"):
        for name in (f"models/adapters/{reward}/w", f"clips/{reward}/a.wav", f"metrics/train/{reward}.json"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(reward)
    (tmp_path / "models" / "adapters" / "mine").mkdir()
    assert put_away(tmp_path, ["emopia", "clap"]) == {}
    assert put_away(tmp_path, ["emopia"]) == {"clap": tmp_path / "old" / "clap-1"}
    assert put_away(tmp_path, ["emopia"]) == {}
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == [
        "clips/emopia/a.wav", "metrics/train/emopia.json", "models/adapters/emopia/w",
        "old/clap-1/clips/clap/a.wav", "old/clap-1/metrics/train/clap.json", "old/clap-1/models/adapters/clap/w",
    ]  # fmt: skip
    assert (tmp_path / "models" / "adapters" / "mine").is_dir()
    (tmp_path / "metrics" / "train" / "clap.json").write_text("again")
    assert put_away(tmp_path, ["emopia"]) == {"clap": tmp_path / "old" / "clap-2"}  # nothing is overwritten


def test_judges_that_predict_nothing_still_give_every_output():
    def plain(table: pd.DataFrame) -> pd.DataFrame:
        return table[["emotion", "instrument", "quadrant", "clap_headline", "clap_value"]]

    tables = plain(scores(HEARD_ORIGINAL, SIMILAR_ORIGINAL)), plain(scores(HEARD_TRAINED, SIMILAR_TRAINED))
    alone = Study(tables[0], {"clap": tables[1]}, {"clap": ["clap"]}, {}, SETTINGS, seed=0)
    data = plots(alone)
    assert [name for name in data if name.startswith("confusion/")] == ["confusion/none.csv"]
    assert "clap similarity" in picture(data["accuracy.csv"])
    assert "Table 1" not in markdown(alone)
    assert metrics(alone)["judged_by_clap"]["trained_with_clap"]["gain"] == 0.1


# In words


def with_listener(heard_before: list[int], heard_after: list[int]) -> Study:
    """The adapter emopia raises its own reward; what the listener hears is given."""
    tables = []
    for own, heard in ((HEARD_ORIGINAL, heard_before), (HEARD_TRAINED, heard_after)):
        table = pd.concat([scores(own, SIMILAR_ORIGINAL)] * 10, ignore_index=True)
        table["listener_headline"], table["listener_predicted"] = "accuracy", "Q1"
        table["listener_correct"], table["listener_value"] = heard * 10, [float(x) for x in heard * 10]
        table["listener_instrument"] = [1, 0] * 40
        tables.append(table)
    reference = REFERENCE | {"listener": {"piano": {"happy": 1.0, "sad": 0.9}}}
    return Study(tables[0], {"emopia": tables[1]}, {"emopia": ["emopia"]}, reference, SETTINGS, seed=0)


def test_a_reward_that_rises_unheard_is_said_in_words():
    text = "\n".join(in_words(with_listener([1, 0] * 4, [1, 0] * 4)))

    assert "emopia accuracy rose from 0.25 to 0.75" in text
    assert "the emotion of the prompt did not change significantly: from 0.50 to 0.50" in text
    assert "**The reward rose and the listener does not hear it**" in text
    assert "It hears the instrument: in 0.50 [0.39, 0.61] of the clips (before: 0.50 [0.39, 0.61])" in text


def test_an_instrument_that_is_lost_is_said_in_words():
    study = with_listener([0] * 8, [1] * 8)
    study.trained["emopia"]["listener_instrument"] = 0

    low, high = binomtest(0, 80).proportion_ci(method="wilson")
    text = "\n".join(in_words(study))
    assert f"**It hears the instrument of the prompt less often**: in 0.00 [{low:.2f}, {high:.2f}]" in text


def test_the_same_clips_are_compared_so_a_small_loss_of_the_instrument_is_said_too():
    study = with_listener([0] * 8, [1] * 8)
    study.original["listener_instrument"] = [1] * 76 + [0] * 4
    study.trained["emopia"]["listener_instrument"] = [1] * 68 + [0] * 12  # the intervals overlap; eight are lost

    before, after = (binomtest(n, 80).proportion_ci(method="wilson") for n in (76, 68))
    assert after.high > before.low
    assert "**It hears the instrument of the prompt less often**: in 0.85 " in "\n".join(in_words(study))


def test_a_reward_that_rises_and_is_heard_has_no_such_warning():
    text = "\n".join(in_words(with_listener([0] * 8, [1] * 8)))

    assert "the emotion of the prompt rose from 0.00 to 1.00" in text
    assert "does not hear it" not in text


def test_an_emotion_that_falls_and_a_reward_above_its_ceiling_are_named():
    text = "\n".join(in_words(with_listener([1, 1] * 4, [1, 0] * 4)))

    assert "**It hears less of sad** than before" in text
    assert "emopia is right on" not in text  # 0.75 on real recordings, and 0.75 here
    assert "emopia is right on 0.50" in "\n".join(in_words(lower_ceiling(with_listener([1, 1] * 4, [1, 0] * 4))))


def lower_ceiling(study: Study) -> Study:
    reference = {**study.reference, "emopia": {"piano": {"happy": 0.5, "sad": 0.5}}}
    return Study(study.original, study.trained, study.rewards, reference, SETTINGS, seed=0)


def test_the_table_of_the_listener_is_the_first_and_in_bold_with_its_ceiling():
    text = markdown(with_listener([0] * 8, [1] * 8))

    tables = [line for line in text.splitlines() if line.startswith("## Table 1")]
    assert tables == [
        "## Table 1: share of clips in which **listener** hears the emotion of the prompt",
        "## Table 1: share of clips in which emopia hears the emotion of the prompt",
    ]
    assert "| sad | **0.00 [0.00, 0.09]** | **1.00 [0.91, 1.00]** | 0.90 | 40 |" in text
