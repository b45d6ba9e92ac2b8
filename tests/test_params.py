"""params.yaml: what it must hold, and what a user reads when it does not."""

import copy
import json
import os
import re
import sys

import pytest
import yaml
from dvc.utils.serialize import parse_yaml

from helpers.project import ONE_THREAD, PROJECT, run
from music_ddpo.core.errors import UserError
from music_ddpo.core.params_file import load, parse
from music_ddpo.measuring.clips import evaluation_prompts

SHIPPED = PROJECT / "params.yaml"
MISSING = object()


def changed(key, value):
    """The content of the shipped params.yaml with one (dotted) key changed, added or removed."""
    content = yaml.safe_load(SHIPPED.read_text())
    group = content
    *path, last = key.split(".")
    for part in path:
        group = group[part]
    if value is MISSING:
        del group[last]
    else:
        group[last] = copy.deepcopy(value)
    return content


def message(content):
    with pytest.raises(UserError) as caught:
        parse(content)
    return str(caught.value)


def test_the_shipped_file_is_valid():
    params = load(SHIPPED)
    assert params.model == "mini"
    assert params.ddpo.adam_betas == [0.9, 0.999]


def test_auto_becomes_the_value_for_the_model():
    assert (load(SHIPPED).guidance_scale, load(SHIPPED).ddpo.learning_rate) == (1.0, 0.0075)
    other = parse(changed("model", "audioldm2-music"))
    assert (other.guidance_scale, other.ddpo.learning_rate) == (3.5, 0.0003)
    assert parse(changed("ddpo.learning_rate", 0.1)).ddpo.learning_rate == 0.1
    assert parse(changed("auto.learning_rate", {"mini": 0.5, "otherwise": 0.1})).ddpo.learning_rate == 0.5
    assert parse(changed("auto.members", {"mini": 3, "otherwise": 1})).emopia.members == 3
    assert parse(changed("emopia.members", 2)).emopia.members == 2
    budget = [(p.ddpo.rounds, p.ddpo.trajectories_per_round, p.trained_steps) for p in (load(SHIPPED), other)]
    assert budget == [(11, 64, range(10)), (100, 256, range(19))]
    with pytest.raises(UserError, match=r"ddpo\.updates_per_round: 4 must divide.*which is 6"):
        parse(changed("auto.trajectories_per_round", {"mini": 6, "otherwise": 8}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("stepz", 9, ["did you mean 'steps'"]),
        ("ddpo.learning_rte", 0.1, ["did you mean 'learning_rate'"]),
        ("compute.zzz", 1, ["device", "decode_batch"]),
        ("steps", MISSING, ["is missing"]),
        ("ddpo.rounds", MISSING, ["is missing"]),
        ("duration", -1, ["duration: -1", "greater than 0"]),
        ("duration", "5", ["duration: '5'", "number"]),
        ("duration", True, ["duration: True", "number"]),
        ("steps", 0, ["steps: 0", "greater than or equal to 1"]),
        ("steps", 2000, ["steps: 2000", "less than or equal to 1000"]),
        ("steps", 9.5, ["steps: 9.5", "integer"]),
        ("seed", -1, ["seed: -1", "at least 0", "random"]),
        ("seed", True, ["seed: True", "random"]),
        ("seed", {}, ["random"]),
        ("guidance_scale", 0.5, ["guidance_scale: 0.5", "at least 1", "auto"]),
        ("model", "minni", ["model: 'minni'", "did you mean 'mini'"]),
        ("rewards", ["clop"], ["'clop'", "emopia", "did you mean 'clap'"]),
        ("rewards", ["held_out"], ["'held_out' judges only"]),
        ("judges", ["clop"], ["'clop', which is not in", "did you mean 'clap'"]),
        ("judges", ["clap"], ["rewards: 'emopia'", "add it to `judges`"]),
        ("mixtures", {"both": {"clap": 0}}, ["both.clap", "greater than or equal to 0.000001"]),
        ("mixtures", {"both": {}}, ["at least one reward"]),
        ("mixtures", {"clap": {"clap": 1.0}}, ["'clap' must be a word"]),
        ("mixtures", {"both": {"clop": 1.0}}, ["mixtures.both: 'clop'"]),
        ("auto.learning_rate", {"mini": 1.0}, ["otherwise"]),
        ("rewards", ["clap", "clap"], ["'clap' twice"]),
        ("rewards", [], ["at least 1"]),
        ("reward_form", "dense", ["reward_form: 'dense'", "'value'", "'margin'", "'label'"]),
        ("prompts", 3, ["prompts: 3", "dictionary"]),
        ("prompts.emotions", [], ["at least 1"]),
        ("prompts.emotions", ["happy", "hungry"], ["'hungry'", "happy", "tender"]),
        ("prompts.instruments", [], ["at least 1"]),
        ("prompts.instruments", ["piano", " "], ["must not contain an empty name"]),
        ("prompts.template", "A {emotion} piano", ["'A {emotion} piano' must contain {emotion} and {instrument}"]),
        ("prompts.template", "A {mood} {emotion} {instrument}", ["{mood}", "no other braces"]),
        ("prompts.template", "A {emotion} {instrument} {", ["is not a template"]),
        ("prompts.template", "A {emotion:d} {instrument}", ["{emotion:d}"]),
        ("ddpo.timesteps", "first 20", ["'first 20' is more than steps, which is 19"]),
        ("ddpo.timesteps", "middle 3", ["'middle 3'", "first N"]),
        ("ddpo.timesteps", "last 0", ["'last 0'", "last N"]),
        ("ddpo.timesteps", "random 20", ["'random 20' is more than steps, which is 19"]),
        ("ddpo.timesteps", "random 101%", ["'random 101%'", "random N"]),
        ("ddpo.updates_per_round", 5, ["5 must divide ddpo.trajectories_per_round, which is 64"]),
        ("ddpo.learning_rate", float("inf"), ["inf"]),
        ("ddpo.clip_range", float("nan"), ["nan"]),
        ("ddpo.advantages", "all", ["'all'", "'window'", "'group'"]),
        ("ddpo.kl", -0.1, ["ddpo.kl: -0.1", "at least 0"]),
        ("ddpo.kl", 1e300, ["ddpo.kl: 1e+300", "at most 1e+06"]),
        ("ddpo.advantage_minimum", 1, ["ddpo.advantage_minimum: 1", "2"]),
        ("ddpo.advantage_minimum", 17, ["17 must be at most ddpo.advantage_window, which is 16"]),
        ("lora.rank", "8", ["'8'", "integer"]),
        ("lora.targets", "self", ["'self'", "'cross'", "'all'"]),
        ("auto.timesteps", {"mini": "auto", "otherwise": "all"}, ["auto.timesteps.mini: 'auto'"]),
        ("auto.timesteps", {"mini": "all", "otherwise": "some"}, ["auto.timesteps.otherwise: 'some'"]),
        ("weights.preference.repo", "~nosuchuser/x", ["weights.preference.repo", "a path"]),
        ("weights.preference.repo", "x" * 300, ["weights.preference.repo", "a path"]),
        ("emopia.windows", "all", ["'all'", "'paper'", "'cover'"]),
        ("emopia.members", 0, ["emopia.members: 0", "at least 1", "auto"]),
        ("emopia.members", "all", ["emopia.members: 'all'", "whole number", "'auto'"]),
        ("auto.members", {"mini": 0, "otherwise": 1}, ["auto.members.mini: 0"]),
        ("evaluation.clips_per_emotion", 1, ["clips_per_emotion: 1", "2"]),
        ("lora.rank", 10**6, ["lora.rank: 1000000", "1024"]),
        ("lora.rank", 10**11, ["1024"]),
        ("lora.alpha", 1e300, ["lora.alpha: 1e+300", "10000"]),
        ("evaluation.clips_per_emotion", 10**7, ["clips_per_emotion: 10000000", "1000"]),
        ("evaluation.bootstrap", 10**12, ["bootstrap: 1000000000000", "100000"]),
        ("ddpo.trajectories_per_round", 10**10, ["trajectories_per_round: 10000000000", "100000"]),
        ("ddpo.rounds", 10**400, ["ddpo.rounds: 1000", "...", "100000"]),
        ("ddpo.timesteps", "first " + "9" * 100, ["first N"]),
        ("ddpo.learning_rate", 1e39, ["learning_rate: 1e+39", "at most 1"]),
        ("ddpo.learning_rate", 10**400, ["at most 1"]),
        ("ddpo.clip_range", 1e300, ["clip_range: 1e+300"]),
        ("ddpo.advantage_clip", 1e300, ["advantage_clip: 1e+300"]),
        ("ddpo.weight_decay", 1e300, ["weight_decay: 1e+300", "100"]),
        ("guidance_scale", 1e30, ["guidance_scale: 1e+30", "at most 100"]),
        ("auto.guidance_scale", {"otherwise": 1e30}, ["auto.guidance_scale.otherwise: 1e+30", "100"]),
        ("mixtures", {"both": {"clap": 1e308}}, ["both.clap: 1e+308"]),
        ("mixtures", {"x" * 300: {"clap": 1.0}}, ["must be a word"]),
        ("compute.processes", 10**30, ["compute.processes", "64"]),
        ("compute.decode_batch", 10**30, ["compute.decode_batch", "at most 100000", "auto"]),
        ("compute.device", "cuda:" + "1" * 30, ["cuda:N"]),
        ("compute.device", "cuda:\u0661", ["cuda:N"]),
        ("prompts.template", "{emotion:>100000000} {instrument}", ["no other braces"]),
        ("prompts.template", "{emotion!r} {instrument}", ["no other braces"]),
        ("prompts.template", "{emotion.__class__} {instrument}", ["no other braces"]),
        ("prompts.negative", "x" * 10**6, ["prompts.negative: 'xxx", "at most 1000"]),
        ("prompts.negative", "a\ud800", ["prompts.negative: 'a\\ud800'"]),
        ("prompts.instruments", ["pia\0no"], ["prompts.instruments.0", "one line", "'\\x00'"]),
        ("prompts.instruments", ["piano\r"], ["prompts.instruments.0", "'\\r'"]),
        ("prompts.instruments", ["x" * 300], ["prompts.instruments.0", "at most 50"]),
        ("rewards", ["a b"], ["rewards: 'a b' is not among"]),
        ("rewards", [[[["x"]]] * 10**4], ["rewards.0"]),
        ("model", "~nosuchuser/x", ["model: '~nosuchuser/x'", "existing folder"]),
        ("model", "no/such/folder", ["model: 'no/such/folder'", "existing folder"]),
        ("model", "a/" + "x" * 400, ["model: 'a/xxx", "existing folder"]),
        ("weights.emopia", "~nosuchuser/x", ["weights.emopia", "a path"]),
        ("weights.emopia", "x" * 300, ["weights.emopia", "a path"]),
        ("weights.clap.file", "../x.pt", ["weights.clap.file", "in the repository"]),
        ("weights.clap.file", "/x.pt", ["weights.clap.file", "in the repository"]),
        ("weights.clap.repo", "a/b/c", ["weights.clap.repo"]),
        ("mixtures", {"baseline": {"clap": 1.0}}, ["'baseline' must be a word that is not in use"]),
        ("evaluation.confidence", 95, ["95", "less than 1"]),
        ("compute.batch", 0, ["batch: 0", "at least 1", "auto"]),
        ("compute.device", "gpu", ["'gpu'", "cuda"]),
    ],
)
def test_a_wrong_value_gives_one_line_that_names_the_key_and_the_way_out(key, value, words):
    text = message(changed(key, value))
    assert "\n" not in text
    assert len(text) < 500
    assert [word for word in ["params.yaml: ", *words] if word not in text] == []


def test_a_misspelt_key_is_named_even_though_the_right_one_is_then_missing():
    content = changed("steps", MISSING)
    content["stepz"] = 19
    assert "stepz: is not a known key; did you mean 'steps'?" in message(content)


@pytest.mark.parametrize("content", ["", "- 1\n- 2", "a: [1", "a: \x07", "19"])
def test_what_is_not_a_yaml_mapping_gives_one_line_that_names_the_file(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_gives_one_line_that_names_it(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[\n " * 3000, "nested too deeply"),
        ("2001-99-99", "month"),
        ("!!int abc", "invalid literal"),
        ("!!float abc", "could not convert"),
        ("!!bool maybe", "maybe"),
        ("9" * 5000, "digits"),
        ("0x" + "f" * 6000, "a number of 24000 bits"),
        ("!!python/object/apply:os.system [echo]", "line 5: could not determine a constructor"),
        ("777\nseed: 3", "line 6: found duplicate key"),
        ("&a [[[[*a]]]]", "seed: [[["),
        ("1:20:30", "seed: '1:20:30' must be a whole number"),
    ],
)
def test_what_yaml_cannot_read_gives_one_line(tmp_path, value, words):
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.read_text().replace("seed: 777", f"seed: {value}"))
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        load(path)
    assert len(str(caught.value).removeprefix(str(path))) < 500
    assert "\n" not in str(caught.value)


def test_aliases_of_aliases_are_quoted_in_a_few_words(tmp_path):
    levels = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"{'b' * i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    anchors = "".join(f"    {level}\n" for level in levels)
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.read_text().replace("mixtures:\n", f"mixtures:\n  m:\n{anchors}"))
    with pytest.raises(UserError, match=r"mixtures\.m\.a: ") as caught:
        load(path)
    assert len(str(caught.value).removeprefix(str(path))) < 300


@pytest.mark.parametrize("value", ["0777", "0o17", "0x1F", "1_000", "+5", "yes", "1:20:30", "1e3", "7\nseed: 8"])
def test_our_loader_reads_what_dvc_reads(tmp_path, value):
    """PyYAML reads YAML 1.1, where 0777 is 511 and 1:20:30 is 4830."""
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.read_text().replace("seed: 777", f"seed: {value}"))

    def seed(read):
        try:
            return read()
        except Exception:
            return None

    by_dvc = seed(lambda: parse_yaml(path.read_text(), path)["seed"])
    assert seed(lambda: load(path).seed) == (by_dvc if isinstance(by_dvc, int) else None)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "large"])
def test_only_a_regular_file_of_a_sane_size_is_read(tmp_path, kind):
    path = tmp_path / "params.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("#" * 100_000)
    with pytest.raises(UserError, match=re.escape(str(path)) + (".*64 kB" if kind == "large" else ".*regular file")):
        load(path)


def test_a_file_in_another_encoding_is_refused_with_the_one_to_use(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(SHIPPED.read_text().replace("piano", "clav\xe9").encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        load(path)
    path.write_bytes(SHIPPED.read_text().replace("piano", "clav\xe9").encode("utf-8-sig"))
    assert load(path).prompts.instruments == ["clav\xe9"]


@pytest.mark.parametrize(("clips", "trajectories", "words"), [(2, 64, "set it to 3 or more"), (3, 20, "set it to 24")])
def test_prompts_without_clips_are_refused_with_the_numbers_that_would_do(clips, trajectories, words):
    content = changed("prompts.instruments", ["piano", "flute", "violin"])
    content["evaluation"]["clips_per_emotion"] = clips
    content["ddpo"] |= {"trajectories_per_round": trajectories, "advantages": "group"}
    assert words in message(content)
    if clips == 3:  # the window has earlier rounds too, so this is no error
        content["ddpo"]["advantages"] = "window"
        assert words in parse(content).few_trajectories
    content["evaluation"]["clips_per_emotion"], content["ddpo"]["trajectories_per_round"] = 3, 24
    params = parse(content)
    assert params.few_trajectories == ""
    assert len({p.text for p in evaluation_prompts(params)}) == 12


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="not found; run this from the project's folder"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("number", ["1e-05", "1e-3", "0.00001"])
def test_a_number_is_a_number_however_dvc_writes_it(tmp_path, number):
    """`dvc exp run -S ddpo.learning_rate=1e-5` writes 1e-05, a number in YAML 1.2 and a word in YAML 1.1."""
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"  learning_rate: auto", f"  learning_rate: {number}", SHIPPED.read_text()))
    assert load(path).ddpo.learning_rate == float(number)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", "random"), ("seed", 0), ("duration", 2.5), ("ddpo.timesteps", "last 19"), ("compute.batch", 1)],
)
def test_allowed_values_are_kept_unchanged(key, value):
    found = parse(changed(key, value))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_params_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        load(SHIPPED).steps = 9


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [
        ("all", range(19)),
        ("first 5", range(5)),
        ("last 5", range(14, 19)),
        ("first 19", range(19)),
        ("first 50%", range(10)),
        ("last 10%", range(17, 19)),
        ("last 100%", range(19)),
    ],
)
def test_trained_steps_count_from_the_noisiest(timesteps, expected):
    params = parse(changed("ddpo.timesteps", timesteps))
    assert (params.trained_steps, params.steps_of_an_update) == (expected, len(expected))


@pytest.mark.parametrize(("timesteps", "count"), [("random 5", 5), ("random 50%", 10), ("random 100%", 19)])
def test_random_steps_are_drawn_from_all(timesteps, count):
    params = parse(changed("ddpo.timesteps", timesteps))
    assert (params.trained_steps, params.steps_of_an_update) == (range(19), count)


def test_generated_params_end_in_a_clear_error_or_in_the_right_result(tmp_path):
    """A small part of what benchmarks/fuzz.py tries."""
    result = tmp_path / "fuzz.json"
    options = ("--cases", "15", "--seed", "1", "--out", str(result))
    done = run(PROJECT, sys.executable, "benchmarks/fuzz.py", *options, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads(result.read_text())["ended"]) <= {"accepted", "refused by the loader", "refused by a stage"}
