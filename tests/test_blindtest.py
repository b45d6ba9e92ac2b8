"""The blind listening test: pairs, votes that survive a kill, a page that does not tell, and what the votes say."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import wavfile
from starlette.testclient import TestClient

from helpers import browser
from helpers.project import run, set_params, small
from music_ddpo.blindtest import analysis, server
from music_ddpo.blindtest.pairs import APART, make_plan
from music_ddpo.blindtest.votes import Ballot, Box, Vote, read, write
from music_ddpo.core.errors import UserError
from music_ddpo.measuring import clips
from music_ddpo.measuring.features import loudness

RATE, SECONDS, EACH = 16_000, 0.5, 10
KNOBS = {"duration": SECONDS, "evaluation__clips_per_emotion": EACH}
SYSTEMS = ("original", "clap", "emopia")
QUESTION = "Which sounds more {emotion}?"
NOTHING = {"rater": "r", "clip": "", "emotion": "sad", "seconds": 1.0, "time": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A project with params and clips of tones; each system has another level."""
    project = tmp_path_factory.mktemp("blind")
    set_params(project, **KNOBS)
    asked = clips.evaluation_prompts(small(**KNOBS))
    for name, level in (("baseline", 0.05), ("clap", 0.2), ("emopia", 0.8)):
        t = torch.arange(int(SECONDS * RATE)) / RATE
        sounds = [level * torch.sin(2 * math.pi * (220 + 10 * i) * t) for i in range(len(asked))]
        clips.save(project / "clips" / name, sounds, RATE, asked)
    return project


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def plan_of(systems=SYSTEMS, count=40, seed=3, question=QUESTION):
    return make_plan(small(**KNOBS), systems, count, question, seed)


def vote(number: int, a: str, b: str, answer: str, pair: int | None = None, **more) -> Vote:
    return Vote(**NOTHING | {"number": number, "pair": number if pair is None else pair, "a": a, "b": b,
                             "answer": answer, "repeated": False} | more)  # fmt: skip


# Pairs


def test_pairs_are_balanced_over_emotions_and_systems_and_drawn_by_the_seed():
    plan = plan_of(count=48)
    assert set(Counter(pair.emotion for pair in plan.pairs).values()) == {12}
    assert set(Counter(pair.systems for pair in plan.pairs).values()) == {16}
    assert len({(pair.clip, pair.systems) for pair in plan.pairs}) == 48
    assert plan.pairs == plan_of(count=48).pairs != plan_of(count=48, seed=4).pairs


def test_a_tenth_of_the_pairs_comes_back_later_with_its_sides_swapped():
    plan = plan_of(count=40)
    shown = plan.presentations("anna")
    assert shown == plan.presentations("anna") != plan.presentations("ben")
    first = {s.pair: i for i, s in enumerate(shown) if not s.repeated}
    again = {s.pair: i for i, s in enumerate(shown) if s.repeated}
    assert (len(first), len(again)) == (40, 4)
    for pair, i in again.items():
        earlier = shown[first[pair]]
        assert (shown[i].a, shown[i].b) == (earlier.b, earlier.a)
        assert i - first[pair] > APART
    sides = Counter(s.pair.systems.index(s.a) for r in range(20) for s in plan.presentations(str(r)))
    assert 0.4 < sides[0] / sides.total() < 0.6


@pytest.mark.parametrize(
    ("systems", "question", "told"),
    [
        (("original", "clop"), QUESTION, "--systems: 'clop' is not one of original, clap, emopia"),
        (("original",), QUESTION, "--systems: name two or more different systems"),
        (("clap", "clap"), QUESTION, "--systems: name two or more different systems"),
        (SYSTEMS, "More {mood}?", "--question: 'More {mood}?' has a placeholder other than"),
        (SYSTEMS, "More {?", "--question: "),
    ],
)
def test_a_wrong_plan_is_one_sentence(systems, question, told):
    with pytest.raises(UserError) as error:
        plan_of(systems, question=question)
    assert str(error.value).startswith(told)


# Votes


def test_votes_are_there_again_and_undone_ones_are_not(tmp_path):
    path, plan = tmp_path / "votes" / "votes.jsonl", {"question": "?", "systems": ["x", "y"], "pairs": []}
    box = Box(path, plan)
    votes = [vote(i, "x", "y", "a") for i in range(3)]
    assert [box.add(v) for v in votes] == [True] * 3
    assert box.add(replace(votes[1], answer="b")) is False  # a second vote on the same presentation
    assert box.undo("r", 2)
    assert not box.undo("r", 2)  # asked again, because the reply was lost
    assert not box.undo("somebody", 0)
    assert read(path) == Ballot(plan, votes[:2])
    with pytest.raises(UserError, match="another `music-ddpo listen` writes it"):
        Box(path, plan)
    box.close()
    again = Box(path, plan)
    assert list(again.of("r")) == [0, 1]
    assert again.add(votes[2])
    assert read(path).votes == votes


@pytest.mark.parametrize("end", ["{", '{"rater": "r", "num', '{"rater": "r", "undo": 0}'])
def test_a_line_that_was_not_written_to_its_end_is_no_vote(tmp_path, end):
    path, plan = tmp_path / "votes.jsonl", {"question": "?", "systems": [], "pairs": []}
    write(path, plan, [vote(0, "x", "y", "a")])
    with path.open("a") as file:
        file.write(end)
    assert len(read(path).votes) == 1
    box = Box(path, plan)
    box.add(vote(1, "x", "y", "b"))
    assert [v.number for v in read(path).votes] == [0, 1]


def test_votes_of_another_test_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "votes.jsonl"
    write(path, {"seed": 1, "question": "?", "systems": [], "pairs": []}, [vote(0, "x", "y", "a")])
    with pytest.raises(UserError, match=r"votes.jsonl: has votes of a test with other seed; give --votes another file"):
        Box(path, {"seed": 2, "question": "?", "systems": [], "pairs": []})
    with pytest.raises(UserError, match="exists already"):
        write(path, {}, [])
    for damaged in ("[]", "{}", '{"rater": 3}', "nonsense", json.dumps({"undo": 1})):
        path.write_text(f'{{"plan": {{"question": "?", "systems": [], "pairs": []}}}}\n{damaged}\n')
        with pytest.raises(UserError, match=r"votes.jsonl: line 2 is damaged"):
            read(path)
    done = run(tmp_path, "music-ddpo", "votes", "nothing.jsonl")
    assert (done.returncode, done.stderr) == (
        1, "Error: nothing.jsonl: not found; name a file that `music-ddpo listen` has written.\n"
    )  # fmt: skip


# The server


@pytest.fixture
def served(tmp_path):
    plan = plan_of()
    box = Box(tmp_path / "votes.jsonl", plan.identity())
    return plan, box, TestClient(server.make_app(plan, box, ["testserver"]), follow_redirects=False)


def started(client, rater="anna") -> dict:
    return client.post("/start", json={"rater": rater}).json()


def answer(client, session: str, number: int, choice="a", heard=(3.0, 3.0)):
    for side in "ab":
        client.get(f"/clip/{session}/{number}/{side}")
    content = {"session": session, "number": number, "answer": choice, "heard": heard, "seconds": 9.0}
    return client.post("/vote", json=content)


def test_a_test_goes_from_the_first_pair_to_the_last_and_each_vote_has_its_systems(served):
    plan, box, client = served
    state = started(client)
    assert (state["done"], state["all"], state["number"]) == (0, 44, 0)
    shown = plan.presentations("anna")
    while state["number"] is not None:
        pair = shown[state["number"]].pair
        assert state["question"] == f"Which sounds more {pair.emotion}?"
        state = answer(client, client.session, state["number"]).json() if state["done"] else _first(client, state)
    assert [(v.a, v.b, v.pair, v.repeated) for v in read(box.path).votes] == [
        (s.a, s.b, s.pair.number, s.repeated) for s in shown
    ]
    assert read(box.path).plan["systems"] == list(SYSTEMS)


def _first(client, state) -> dict:
    client.session = state["session"]
    return answer(client, client.session, 0).json()


def test_nothing_that_is_sent_before_the_vote_tells_the_systems(served):
    plan, _, client = served
    session = started(client)["session"]
    names = [*SYSTEMS, "baseline", *(pair.clip for pair in plan.pairs), *plan.clips.values()]
    sent = [client.get(path) for path in ("/", "/page.js", "/page.css")]
    sent.append(client.post("/start", json={"rater": "anna"}))
    sent += [answer(client, session, 0), client.post("/undo", json={"session": session, "number": 0})]
    for response in sent:
        assert response.status_code == 200
        told = (response.text + str(dict(response.headers))).lower()
        assert not [name for name in names if name.lower() in told]
    shown = plan.presentations("anna")
    for number in range(5):
        both = [client.get(f"/clip/{session}/{number}/{side}") for side in "ab"]
        assert both[0].headers == both[1].headers  # so the same length, and no name, date or checksum
        assert set(both[0].headers) == {
            "cache-control", "content-length", "content-security-policy", "content-type", "referrer-policy",
            "x-content-type-options",
        }  # fmt: skip
        sounds = [wavfile.read(io.BytesIO(r.content))[1] / 32768 for r in both]
        for sound in sounds:
            assert loudness(sound) == pytest.approx(-23, abs=0.2)
        assert shown[number].a != shown[number].b


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/clip/{s}/0/c", 404),
        ("GET", "/clip/{s}/44/a", 404),
        ("GET", "/clip/{s}/-1/a", 404),
        ("GET", "/clip/{s}/0/../../params.yaml", 404),
        ("GET", "/clip/{s}/0/..%2f..%2fparams.yaml", 404),
        ("GET", "/clip/{s}/0/%2e%2e%2f%2e%2e%2fparams.yaml", 404),
        ("GET", "/clip/somebody/0/a", 409),
        ("GET", "/params.yaml", 404),
        ("GET", "/..%2fparams.yaml", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/clips/baseline/index.csv", 404),
        ("GET", "/vote", 405),
        ("POST", "/", 405),
        ("DELETE", "/vote", 405),
        ("PUT", "/clip/{s}/0/a", 405),
    ],
)
def test_only_what_belongs_to_the_test_can_be_asked_for(served, method, path, status):
    _, _, client = served
    response = client.request(method, path.format(s=started(client)["session"]))
    assert response.status_code == status
    assert "/tmp" not in response.text


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"heard": [3.0, 0.1]}, 400, "listen to both for 0.5 s first."),
        ({"heard": [3.0]}, 400, "listen to both"),
        ({"heard": ["3", math.inf]}, 400, "listen to both"),
        ({"heard": [10**400, 3]}, 400, "listen to both"),
        ({"number": 1}, 400, "this pair is not the next one, or was not heard."),
        ({"answer": "c"}, 400, "the vote is incomplete."),
        ({"answer": ["a"]}, 400, "the vote is incomplete."),
        ({"number": 44}, 400, "the vote is incomplete."),
        ({"number": True}, 400, "the vote is incomplete."),
        ({"number": "0"}, 400, "the vote is incomplete."),
        ({"session": "x"}, 409, "this session has ended"),
        ({"session": None}, 409, "this session has ended"),
        ({"more": "x" * 5000}, 413, "the request is too large."),
    ],
)
def test_what_is_no_vote_is_refused_and_nothing_is_written(served, change, status, reason):
    _, box, client = served
    content = {
        "session": started(client)["session"],
        "number": 0,
        "answer": "a",
        "heard": [3, 3],
        "seconds": 1,
    } | change
    before = box.path.read_bytes()
    for side in "ab":
        client.get(f"/clip/{content['session']}/0/{side}")
    response = client.post("/vote", content=json.dumps(content))
    assert response.status_code == status
    assert response.json()["error"].startswith(reason)
    assert box.path.read_bytes() == before
    for wrong in (b"", b"[]", b"{", b"\xff", b"3", b"[" * 4000):
        assert client.post("/vote", content=wrong).status_code == 400


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, 3, None, "a\nb", ["x"]])
def test_a_rater_needs_a_name(served, name):
    assert served[2].post("/start", json={"rater": name}).status_code == 400


def test_other_pages_and_other_hosts_are_refused(served):
    _, box, client = served
    session = started(client)["session"]
    content = {"session": session, "number": 0, "answer": "a", "heard": [3, 3], "seconds": 1}
    assert client.post("/vote", json=content).status_code == 400  # the clips were not even sent
    for side in "ab":
        client.get(f"/clip/{session}/0/{side}")
    assert client.post("/vote", json=content, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert read(box.path).votes == []
    assert client.post("/vote", json=content, headers={"Origin": "http://testserver"}).status_code == 200


def test_with_a_token_nothing_is_sent_without_it(tmp_path):
    plan = plan_of()
    box = Box(tmp_path / "votes.jsonl", plan.identity())
    client = TestClient(server.make_app(plan, box, ["*"], token="secret"))
    for path in ("/", "/page.js", "/?token=wrong", "/?token=%ff"):
        assert client.get(path).status_code == 403
    assert client.post("/start", json={"rater": "anna"}).status_code == 403
    assert client.get("/?token=secret").status_code == 200
    assert client.post("/start", json={"rater": "anna"}).status_code == 200  # the first page set a cookie


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listen(folder: Path, path: Path, at: int, host: str = "127.0.0.1") -> subprocess.Popen:
    command = [Path(sys.executable).with_name("music-ddpo"), "listen", "--pairs", "20", "--votes", path, "--port", at]
    command += ["--host", host]
    process = subprocess.Popen([str(x) for x in command], cwd=folder, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://{host}:{at}/")
            return process
        except httpx.TransportError:
            assert process.poll() is None
            time.sleep(0.1)
    raise AssertionError("it does not answer")


def test_a_server_that_is_killed_between_votes_loses_none_and_counts_none_twice(folder, tmp_path):
    path, at, given = tmp_path / "votes.jsonl", port(), []
    for _ in range(3):
        process = listen(folder, path, at)
        with httpx.Client(base_url=f"http://127.0.0.1:{at}") as client:
            state = started(client)
            assert state["done"] == len(given)
            if given:  # what a page does that never got the reply to its last vote
                assert answer(client, state["session"], given[-1][0], "b").json()["done"] == len(given)
            for choice in ("a", "tie"):
                number = state["number"]
                state |= answer(client, state["session"], number, choice).json()
                given.append((number, choice))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [(v.number, v.answer) for v in read(path).votes] == given
    shown = run(folder, "music-ddpo", "votes", str(path)).stdout
    assert "6 votes of 1 rater on 20 pairs" in shown


def test_a_rater_can_be_left_out(tmp_path):
    plan = {"question": QUESTION, "systems": ["x", "y"], "pairs": []}
    write(tmp_path / "votes.jsonl", plan, [vote(0, "x", "y", "a"), vote(0, "x", "y", "b", rater="s")])
    shown = run(tmp_path, "music-ddpo", "votes", "votes.jsonl", "--without", "s").stdout
    assert "1 vote of 1 rater" in shown
    assert "| s |" not in shown
    done = run(tmp_path, "music-ddpo", "votes", "votes.jsonl", "--without", "t")
    assert done.stderr == "Error: --without: no votes of t are in votes.jsonl.\n"


def test_a_port_in_use_is_one_line_and_no_file_is_begun(folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as used:
        done = run(folder, "music-ddpo", "listen", "--votes", str(tmp_path / "v"), "--port", str(used.getsockname()[1]))
    assert done.returncode == 1
    assert re.fullmatch(r"Error: --host 127.0.0.1 --port \d+: cannot be used \(.*\); choose another.\n", done.stderr)
    assert not (tmp_path / "v").exists()


# What votes say


def test_a_preference_is_the_share_of_decided_votes_with_wilsons_interval():
    votes = [vote(i, "x", "y", "a") for i in range(6)] + [vote(6, "y", "x", "a"), vote(7, "y", "x", "b")]
    votes += [vote(8, "x", "y", "tie"), vote(9, "x", "y", "bad"), vote(10, "x", "z", "a")]
    assert analysis.counts(votes, ("x", "y")) == {"first": 7, "second": 1, "tie": 1, "bad": 1}
    found = analysis.preference(votes, ("x", "y"))
    n, p, z = 8, 7 / 8, 1.959964
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    assert (found.value, found.low, found.high) == pytest.approx((p, middle - half, middle + half), abs=1e-5)
    assert analysis.preference(votes, ("y", "z")) is None


def test_strengths_of_two_systems_are_the_log_odds_and_of_three_they_maximise_the_likelihood():
    votes = [vote(i, "x", "y", "b" if i < 30 else "a") for i in range(40)]
    assert analysis.strengths(votes, ["x", "y"])["y"].value == pytest.approx(math.log(30 / 10), abs=0.02)
    random = np.random.default_rng(1)
    true = {"x": 0.0, "y": 1.0, "z": -0.5}
    pairs = [("x", "y"), ("y", "z"), ("z", "x")] * 200
    votes = []
    for i, (a, b) in enumerate(pairs):
        wins = random.random() < 1 / (1 + math.exp(true[b] - true[a]))
        votes.append(vote(i, a, b, "a" if wins else "b"))
    found = analysis.strengths(votes, ["x", "y", "z"])

    def likelihood(y: float, z: float) -> float:
        strength = {"x": 0.0, "y": y, "z": z}
        return -sum(math.log1p(math.exp(strength[v.b if v.winner == v.a else v.a] - strength[v.winner])) for v in votes)

    best = likelihood(found["y"].value, found["z"].value)
    for step in (-0.05, 0.05):
        assert best > likelihood(found["y"].value + step, found["z"].value)
        assert best > likelihood(found["y"].value, found["z"].value + step)
    for system, strength in true.items():
        assert system == "x" or found[system].low < strength < found[system].high


def test_agreement_and_consistency_do_not_depend_on_the_side():
    votes = [
        vote(0, "x", "y", "a", pair=0), vote(1, "x", "y", "b", pair=1),
        vote(2, "y", "x", "b", pair=0, repeated=True), vote(3, "y", "x", "b", pair=1, repeated=True),
        vote(0, "y", "x", "b", pair=0, rater="s"), vote(1, "y", "x", "tie", pair=1, rater="s"),
    ]  # fmt: skip
    again = analysis.consistency(votes)
    assert (again.value, again.clips) == (0.5, 2)
    share, alpha = analysis.agreement(votes, ("x", "y"))
    assert (share.value, share.clips) == (0.5, 2)
    # by hand: answers x x | y tie; observed disagreement 1/2; expected 1 - sum n(n-1) / (4 * 3) with 2 x, 1 y, 1 tie
    assert alpha == pytest.approx(1 - 0.5 / (1 - 2 / 12))
    assert analysis.agreement(votes[:4], ("x", "y")) is None
    assert analysis.consistency(votes[:2]) is None


def test_random_answers_agree_by_chance_only_and_the_interval_knows_that_answers_to_a_pair_depend():
    random = np.random.default_rng(2)
    pairs = [("x", "y"), ("y", "z"), ("z", "x")]
    votes = [
        vote(i, *pairs[i % 3], "ab"[random.integers(2)], rater=str(r)) for i in range(600) for r in range(4)
    ]  # fmt: skip
    for systems in pairs:
        share, alpha = analysis.agreement(votes, systems)
        assert abs(alpha) < 0.1
        assert share.low < 0.5 < share.high


def test_a_strength_is_given_only_where_votes_say_something():
    found = analysis.strengths([vote(i, "x", "y", "ab"[i % 2]) for i in range(10)], ["x", "y", "z"])
    assert set(found) == {"x", "y"}  # z has no votes
    won = analysis.strengths([vote(i, "x", "y", "b") for i in range(10)], ["x", "y"])
    assert won["y"].value > 3
    assert math.isnan(won["y"].low)
    assert math.isnan(won["y"].high)
    assert analysis.strengths([vote(0, "y", "z", "a")], ["x", "y", "z"]) == {}


def test_a_line_that_the_disk_has_no_space_for_is_taken_back_and_not_confirmed(tmp_path, monkeypatch):
    path = tmp_path / "votes.jsonl"
    box = Box(path, {"question": "?", "systems": [], "pairs": []})
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:40]))
    with pytest.raises(UserError, match=r"the vote could not be written \(no space is left\)"):
        box.add(vote(0, "x", "y", "a"))
    monkeypatch.undo()
    assert box.add(vote(0, "x", "y", "a"))
    assert len(read(path).votes) == 1


def test_a_file_that_is_none_of_votes_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    for content in ("one\ntwo without an end", "no end", '{"rater": 1'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"is damaged|has no votes"):
            Box(path, {"question": "?", "systems": [], "pairs": []})
        assert path.read_text() == content


def test_a_problem_of_the_program_is_one_sentence_without_a_path(served, capsys, monkeypatch):
    _, _, client = served
    monkeypatch.setattr(server, "folder_of", lambda system: Path("/nowhere"))
    server.matched.cache_clear()
    client = TestClient(client.app, raise_server_exceptions=False)
    response = client.get(f"/clip/{started(client)['session']}/0/a")
    assert response.status_code == 500
    assert "nowhere" not in response.text
    assert "Error: /nowhere/" in capsys.readouterr().err


def test_another_address_needs_the_token_that_is_printed(folder, tmp_path):
    at = port()
    process = listen(folder, tmp_path / "votes.jsonl", at, "127.0.0.2")
    try:
        told = process.stdout.readline()
        assert httpx.get(f"http://127.0.0.2:{at}/").status_code == 403
        (address,) = re.findall(r"http://\S+", told)
        assert httpx.get(address).status_code == 200
    finally:
        process.kill()
        process.wait()


def test_simulated_votes_are_called_so():
    plan = plan_of().identity()
    votes = [vote(i, *pair["systems"], "a", simulated="listener, 10% errors") for i, pair in enumerate(plan["pairs"])]
    text = analysis.markdown(Ballot(plan, votes))
    assert "**The votes are simulated**, no person gave them: listener, 10% errors." in text
    assert "## Strengths (Bradley-Terry)" in text
    assert analysis.content(Ballot(plan, votes))["simulated"] == ["listener, 10% errors"]
    json.dumps(analysis.content(Ballot(plan, votes)), allow_nan=False)


def test_a_row_for_each_vote_can_be_written_as_csv(tmp_path):
    plan = {"question": QUESTION, "systems": ["x", "y"], "pairs": []}
    write(tmp_path / "votes.jsonl", plan, [vote(0, "x", "y", "b"), vote(1, "y", "x", "tie")])
    done = run(tmp_path, "music-ddpo", "votes", "votes.jsonl", "--csv", "votes.csv")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "votes.csv")
    columns = ["choice_reference", "choice_non_reference", "choice_answer"]
    assert rows[columns].values.tolist() == [["x", "y", "y"], ["y", "x", "tie"]]


@pytest.mark.skipif(not (browser.BROWSER and browser.DRIVER), reason="no browser: Debian's chromium, chromium-driver")
def test_a_rater_votes_by_keys_in_a_browser_and_goes_on_after_a_restart(folder, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    path, at = tmp_path / "votes.jsonl", port()
    process = listen(folder, path, at)
    with browser.browser(offline=False) as driver:
        wait = WebDriverWait(driver, 20, poll_frequency=0.05)

        def press(key: str) -> None:
            ActionChains(driver).send_keys(key).perform()

        asked = "return performance.getEntriesByType('resource').map((e) => ({ name: e.name }))"

        def hear_both_and_choose(key: str, done: int) -> None:
            choice = driver.find_element("css selector", "[data-answer=a]")
            assert not choice.is_enabled()
            press("1")  # too early
            for side in "ab":
                player = driver.find_element("css selector", f"[data-side={side}]")
                press(" ")
                wait.until(lambda _, player=player: player.get_attribute("aria-pressed") == "true")
                wait.until(lambda _, player=player: player.get_attribute("aria-pressed") == "false")
            wait.until(lambda _: choice.is_enabled())
            press(key)
            wait.until(lambda _: driver.find_element("id", "done").text == f"{done} of 22")

        try:
            driver.get(f"http://127.0.0.1:{at}/")
            driver.find_element("name", "rater").send_keys("anna\n")
            wait.until(lambda _: driver.find_element("id", "question").text.startswith("Which sounds more "))
            hear_both_and_choose("1", 1)
            hear_both_and_choose("0", 2)
            driver.find_element("id", "undo").click()
            wait.until(lambda _: driver.find_element("id", "done").text == "1 of 22")
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = listen(folder, path, at)
            driver.refresh()
            driver.find_element("name", "rater").send_keys("anna\n")
            wait.until(lambda _: driver.find_element("id", "done").text == "1 of 22")
            hear_both_and_choose("x", 2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = listen(folder, path, at)
            driver.find_element("id", "undo").click()  # answered with the state of a new session, and nothing is undone
            # the login's clips, those of the pair after the vote, and now the same pair again
            wait.until(lambda _: sum("/clip/" in e["name"] for e in driver.execute_script(asked)) == 6)
            hear_both_and_choose("2", 3)
            assert [v.answer for v in read(path).votes] == ["a", "bad", "b"]
            severe = [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"]
            expected = ("status of 409", "ERR_CONNECTION_REFUSED")  # while the program was killed
            assert [e for e in severe if not any(words in e for words in expected)] == []
        finally:
            process.kill()
            process.wait()
