"""params.yaml: what it must hold, and what a user reads when it does not."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from music_ddpo.core.errors import UserError
from music_ddpo.core.params_file import load, parse

SHIPPED = Path(__file__).parents[1] / "params.yaml"
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
    assert (load(SHIPPED).guidance_scale, load(SHIPPED).ddpo.learning_rate) == (2.0, 0.015)
    other = parse(changed("model", "audioldm2-music"))
    assert (other.guidance_scale, other.ddpo.learning_rate) == (3.5, 0.0003)
    assert parse(changed("ddpo.learning_rate", 0.1)).ddpo.learning_rate == 0.1
    assert parse(changed("auto.learning_rate", {"mini": 0.5, "otherwise": 0.1})).ddpo.learning_rate == 0.5


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
        ("mixtures", {"both": {"clap": 0}}, ["both.clap", "greater than or equal to 1e-06"]),
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
        ("ddpo.updates_per_round", 5, ["5 must divide ddpo.trajectories_per_round, which is 64"]),
        ("ddpo.learning_rate", float("inf"), ["inf"]),
        ("ddpo.clip_range", float("nan"), ["nan"]),
        ("lora.rank", "8", ["'8'", "integer"]),
        ("evaluation.clips_per_emotion", 1, ["clips_per_emotion: 1", "2"]),
        ("mixtures", {"baseline": {"clap": 1.0}}, ["'baseline' must be a word that is not in use"]),
        ("evaluation.confidence", 95, ["95", "less than 1"]),
        ("compute.batch", 0, ["batch: 0", "at least 1", "auto"]),
        ("compute.device", "gpu", ["'gpu'", "cuda"]),
    ],
)
def test_a_wrong_value_gives_one_line_that_names_the_key_and_the_way_out(key, value, words):
    text = message(changed(key, value))
    assert "\n" not in text
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
    ],
)
def test_trained_steps_count_from_the_noisiest(timesteps, expected):
    assert parse(changed("ddpo.timesteps", timesteps)).trained_steps == expected
