"""The page of a study: what it says, and that it works in a real browser without a network."""

from __future__ import annotations

import json
import math
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

from helpers import browser
from helpers.project import copy_for_stages, run, set_params, small, succeed
from music_ddpo.blindtest.votes import Vote, write
from music_ddpo.core.prompts import QUADRANT_OF_EMOTION
from music_ddpo.measuring import clips
from music_ddpo.measuring.features import loudness
from music_ddpo.measuring.study import Study
from music_ddpo.reporting import page, players, plots

RATE, SECONDS, EACH = 16_000, 4, 3
needs_browser = pytest.mark.skipif(
    not (browser.BROWSER and browser.DRIVER), reason="no browser: Debian's packages are chromium and chromium-driver"
)


def tone(frequency: float, level: float) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(SECONDS * RATE) / RATE)


def scores(asked, right: list[int], values: list[float]) -> pd.DataFrame:
    heard = [p.quadrant if yes else QUADRANT_OF_EMOTION["tender"] for p, yes in zip(asked, right, strict=True)]
    return clips.index_of(asked).drop(columns="prompt").assign(
        emopia_headline="accuracy", emopia_value=values, emopia_predicted=heard, emopia_correct=right,
        held_out_headline="similarity", held_out_value=values,
        listener_headline="accuracy", listener_value=values, listener_predicted=heard, listener_correct=right,
        listener_instrument=right, preference_headline="score", preference_value=0.25,
    )  # fmt: skip


BEFORE, AFTER = [0, 0, 1, 1] * EACH, [1, 0, 0, 1] * EACH  # gained, missed, lost, kept; in the order of the clips


@pytest.fixture(scope="module")
def study_folder(fetched, tmp_path_factory) -> Path:
    """A project with clips of tones, and what the stages before `report` would have written of them."""
    folder = copy_for_stages(fetched, tmp_path_factory.mktemp("report") / "project")
    knobs = {"duration": SECONDS, "rewards": ["emopia"], "evaluation__clips_per_emotion": EACH}
    set_params(folder, **knobs)
    asked = clips.evaluation_prompts(small(**knobs))
    for name, right, level in (("baseline", BEFORE, 0.02), ("emopia", AFTER, 0.5)):
        sounds = [torch.from_numpy(tone(200 + 50 * i, level)).float() for i in range(len(asked))]
        clips.save(folder / "clips" / name, sounds, RATE, asked)
        values = [round(0.1 * i + 0.3 * yes, 3) for i, yes in enumerate(right)]
        index = clips.index_of(asked).drop(columns="prompt")
        features = {"onsets": 1.0, "tempo": 90.0, "centroid": 500.0, "register": 60.0, "mode": 0.1, "silence": 0.0}
        levels = [loudness(x.numpy()) for x in sounds]
        described = index.assign(loudness=levels, **features, embedding_distance=0.1, mel_distance=1.0)
        for kind, table in (("clips", scores(asked, right, values)), ("features", described)):
            (folder / "metrics" / kind).mkdir(parents=True, exist_ok=True)
            table.to_csv(folder / "metrics" / kind / f"{name}.csv", index=False)
    (folder / "plots" / "train").mkdir(parents=True, exist_ok=True)
    curve = pd.DataFrame({"round": [1, 1, 2, 2], "series": ["all", "sad"] * 2, "reward": [0.1, 0.2, 0.3, 0.4]})
    curve.assign(low=[0, None] * 2, high=[0.5, None] * 2).to_csv(folder / "plots" / "train" / "emopia.csv", index=False)
    votes = [Vote("r", i, i, "x.wav", "sad", "original", "emopia", "b", False, 1.0, "", "nobody") for i in range(9)]
    plan = {"question": "<b>Which?</b>", "systems": ["original", "emopia"], "pairs": [{"emotion": "sad"}] * 9}
    write(folder / "votes" / "votes.jsonl", plan, votes)
    write(folder / "votes" / "others.jsonl", plan | {"question": "Others?", "clips": {"original": "0"}}, votes)
    succeed(folder, "python", "stages/table.py")
    done = run(folder, "python", "stages/report.py")
    assert done.returncode == 0, done.stderr
    assert "Warning: votes/others.jsonl: has votes on other clips" in done.stderr
    return folder


@pytest.fixture(scope="module")
def opened(study_folder):
    with browser.browser() as driver:
        driver.get((study_folder / "report" / "index.html").as_uri())
        yield driver


def test_the_page_has_the_answer_the_plots_and_what_it_was_made_with(study_folder):
    text = (study_folder / "report" / "index.html").read_text()
    told = re.sub(r"\s+", " ", text)
    assert "Trained with emopia, the listener hears the emotion of the prompt in 50% of the clips" in told
    assert text.count("<h1>") == 1
    assert "<h3>&lt;b&gt;Which?&lt;/b&gt;</h3>" in text
    assert "<strong>The votes are simulated</strong>, no person gave them: nobody." in told
    assert "Others?" not in text
    assert "<td>emopia</td> <td>original</td> <td>sad</td> <td>9</td>" in told
    assert "<h3>Table 1: " in text
    assert "Seed 777." in text
    assert f"duration: {SECONDS}" in text
    assert torch.__version__.split("+")[0] in text
    for name in ("accuracy", "confusion", "features-and-diversity", "reward-curves", "transfer"):
        assert (study_folder / "report" / "plots" / f"{name}.svg").read_text().startswith("<svg")
        assert f'src="plots/{name}.svg"' in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)  # the tables may name pages, the page loads none
    assert str(study_folder) not in text


def test_clips_are_as_loud_as_each_other_and_as_long_as_they_were(study_folder):
    folder = study_folder / "report" / "clips"
    found = sorted(folder.glob("*/*.mp3"))
    assert len(found) == 2 * 4 * EACH
    for path in found:
        sound, rate = soundfile.read(path)
        assert (len(sound), rate) == (SECONDS * RATE, RATE)
        assert loudness(sound) == pytest.approx(players.TARGET, abs=0.3)


@pytest.mark.parametrize(
    ("level", "peak", "gain"),
    [(-30.0, 0.1, 7.0), (-20.0, 0.9, -3.0), (-40.0, 0.5, 6.02), (math.nan, 0.5, 0.0), (-30.0, 0.0, 0.0)],
)
def test_the_gain_reaches_the_target_unless_the_clip_would_exceed_full_scale(level, peak, gain):
    assert players.gain_to_target(np.array([0.0, -peak]), level) == pytest.approx(gain, abs=0.005)


def test_a_tone_is_a_dark_line_at_its_height_in_the_spectrogram(study_folder):
    low, high = (players.spectrogram(tone(f, 0.5), RATE).mean(1).argmin() for f in (300, 3000))
    assert low > high  # high pitches are above
    picture = Image.open(next((study_folder / "report" / "clips" / "emopia").glob("*.png")))
    assert (picture.mode, picture.height) == ("L", 64)


def test_counts_of_the_confusion_are_those_of_the_clips():
    table = pd.DataFrame({"asked": ["Q1", "Q1", "Q2"], "heard": ["Q2", "Q2", "none"]})
    counts = plots.confusion_counts({("emopia", "original"): table}, {"Q1": "happy", "Q2": "angry"})
    found = counts[["asked", "heard", "clips"]].values.tolist()
    assert found == [["happy", "angry", 2], ["angry", "none", 1]]


def test_without_a_listener_the_held_out_judge_counts_and_a_similarity_is_no_share():
    asked = clips.evaluation_prompts(small())
    table = scores(asked, [0, 1] * 4, [0.1, 0.4] * 4)
    table = table[[name for name in table if not name.startswith("listener")]]
    study = Study(table, {"emopia": table}, {"emopia": ["emopia"]}, {}, small().evaluation, 1)
    assert players.judge_that_counts(study) == "held_out"
    (sentence,) = page.answer(study)
    assert sentence.startswith("Trained with emopia, the mean held_out similarity of the clips is 0.25, untrained 0.25")
    assert players.states(study, "held_out", 0) == {}


def play_state(driver) -> list:
    """For each track of the first visible card: whether it plays, whether it is heard, and where it is."""
    return driver.execute_script(
        "return [...document.querySelector('.card:not([hidden])').querySelectorAll('audio')]"
        ".map((a) => [!a.paused, !a.muted, a.currentTime])"
    )


@needs_browser
def test_it_loads_without_a_network_and_without_an_error(opened):
    errors = [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []
    broken = "return [...document.images].filter((i) => i.complete && !i.naturalWidth).length"
    assert opened.execute_script(broken) == 0
    took = []
    for _ in range(3):  # other tests run beside it
        opened.refresh()
        took.append(
            opened.execute_script("return performance.timing.loadEventEnd - performance.timing.navigationStart")
        )
    assert 0 < min(took) < 2000


@needs_browser
def test_every_player_plays(opened):
    play = """
const [sound, done] = arguments;
const late = setTimeout(() => done(["no playing event"]), 10000);
sound.addEventListener("playing", () => { clearTimeout(late); done([sound.duration, sound.error]); }, { once: true });
sound.closest(".track").querySelector(".play").click();
"""
    found = opened.find_elements("css selector", "audio")
    assert len(found) == 2 * 4 * EACH
    opened.set_script_timeout(20)
    for sound in found:
        assert opened.execute_async_script(play, sound) == [pytest.approx(SECONDS, abs=0.05), None]
        opened.execute_script("arguments[0].closest('.track').querySelector('.play').click()", sound)


@needs_browser
def test_keys_switch_in_place_and_in_time(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    def press(*keys: str) -> None:
        ActionChains(opened).send_keys(*keys).perform()

    opened.refresh()
    press("1")
    wait_until(lambda: play_state(opened)[0][2] > 0.2)
    press("x")
    (first, second), before = play_state(opened), 0.2
    assert (first[:2], second[:2]) == ([True, False], [True, True])
    assert second[2] > before
    assert second[2] == pytest.approx(first[2], abs=0.25)
    pressed = "return [...document.querySelectorAll('.play')].map((b) => b.getAttribute('aria-pressed'))"
    assert opened.execute_script(pressed)[:2] == ["false", "true"]
    press(" ")
    wait_until(lambda: not any(playing for playing, *_ in play_state(opened)))
    press("1")
    wait_until(lambda: play_state(opened)[0][:2] == [True, True])
    press(" ")
    press("n")
    title = "return document.activeElement.closest('.card').dataset.number"
    assert opened.execute_script(title) == "1"
    press("p")
    assert opened.execute_script(title) == "0"


@needs_browser
def test_a_switch_is_in_time_on_a_host_that_cannot_send_parts_of_a_file(study_folder):
    handler = partial(SimpleHTTPRequestHandler, directory=study_folder / "report")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as host, browser.browser(offline=False) as driver:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        driver.get(f"http://127.0.0.1:{host.server_port}/")
        driver.find_element("css selector", ".play").click()
        wait_until(lambda: play_state(driver)[0][2] > 1.0)
        driver.find_elements("css selector", ".play")[1].click()
        wait_until(lambda: play_state(driver)[1][:2] == [True, True])
        first, second = play_state(driver)
        assert second[2] > 1.0
        assert second[2] == pytest.approx(first[2], abs=0.25)
        host.shutdown()


@needs_browser
def test_keys_do_nothing_to_clips_that_are_filtered_out_and_can_be_switched_off(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import Select

    def heard() -> bool:
        return opened.execute_script("return [...document.querySelectorAll('audio')].some((a) => !a.paused)")

    opened.refresh()
    Select(opened.find_element("name", "state")).select_by_value("lost")
    Select(opened.find_element("name", "emotion")).select_by_value("happy")  # none is left
    ActionChains(opened).send_keys("1").perform()
    assert opened.find_element("id", "shown").text.startswith("0 of ")
    assert not heard()
    Select(opened.find_element("name", "emotion")).select_by_value("sad")
    opened.execute_script("document.getElementById('keys').checked = false; document.activeElement.blur()")
    ActionChains(opened).send_keys("1").perform()
    assert not heard()
    opened.execute_script("document.getElementById('keys').checked = true")
    ActionChains(opened).send_keys("1").perform()
    wait_until(heard)
    assert [e for e in opened.get_log("browser") if e["level"] == "SEVERE"] == []


def wait_until(condition) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(None, 10, poll_frequency=0.05).until(lambda _: condition())


@needs_browser
def test_filters_filter_and_orders_order(opened):
    from selenium.webdriver.support.ui import Select

    def choose(name: str, value: str) -> list[int]:
        Select(opened.find_element("name", name)).select_by_value(value)
        shown = "return [...document.querySelectorAll('.card:not([hidden])')].map((c) => +c.dataset.number)"
        return opened.execute_script(shown)

    opened.refresh()
    everything = list(range(4 * EACH))
    assert choose("emotion", "sad") == everything[2::4]
    assert opened.find_element("id", "shown").text == f"{EACH} of {4 * EACH} clips"
    assert choose("emotion", "") == everything
    assert choose("state", "gained") == everything[0::4]
    assert choose("state", "lost") == everything[2::4]
    assert choose("state", "") == everything
    changes = 0.3 * (np.array(AFTER) - np.array(BEFORE))
    assert changes[choose("order", "best")].tolist() == sorted(changes, reverse=True)
    assert changes[choose("order", "worst")].tolist() == sorted(changes)


@needs_browser
@pytest.mark.parametrize("width", browser.WIDTHS.values())
def test_nothing_is_wider_than_the_window_and_all_controls_have_a_name(study_folder, width):
    with browser.browser(width) as driver:
        driver.get((study_folder / "report" / "index.html").as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        nameless = """
return [...document.querySelectorAll("button, select, img, a, [role=region]")].filter((e) =>
  !(e.getAttribute("aria-label") || e.alt || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)
"""
        assert driver.execute_script(nameless) == []


def test_a_missing_clip_is_one_line_and_the_old_page_stays(study_folder):
    path = next((study_folder / "clips" / "emopia").glob("*.wav"))
    content, before = path.read_bytes(), (study_folder / "report" / "index.html").read_bytes()
    path.unlink()
    try:
        done = run(study_folder, "python", "stages/report.py")
    finally:
        path.write_bytes(content)
    assert done.returncode == 1
    assert f"Error: clips/emopia/{path.name}: not found" in done.stderr
    assert (study_folder / "report" / "index.html").read_bytes() == before
    assert not list(study_folder.glob("*.partial"))


def test_states_and_changes_are_those_of_the_judge_that_counts(study_folder):
    text = (study_folder / "report" / "index.html").read_text()
    found = [json.loads(x)["emopia"] for x in re.findall(r"data-states='(.*?)'", text)]
    assert found == ["gained", "missed", "lost", "kept"] * EACH
