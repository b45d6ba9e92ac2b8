"""The rewards, on random weights: what they compute is checked against other code, not against training."""

import json
import re
import shutil
import statistics
import warnings

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F  # noqa: N812
from torchaudio.functional import melscale_fbanks
from torchaudio.functional import resample as torchaudio_resample
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    ClapTextConfig,
    RobertaTokenizer,
)

from helpers.project import CPU, PROJECT, params_with, small
from music_ddpo import rewards
from music_ddpo.core import params as params_module
from music_ddpo.core.errors import UserError
from music_ddpo.core.params_file import parse
from music_ddpo.core.prompts import make_prompts
from music_ddpo.rewards import fetching, finding
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.rewards.clap import Clap
from music_ddpo.rewards.clap.hf import TransformersEncoder
from music_ddpo.rewards.emopia import Emopia
from music_ddpo.rewards.emopia.network import ShortChunkResNet
from music_ddpo.rewards.mixture import Mixture
from music_ddpo.weights.manifests import check_duration

RATE = 16000
SMALL = {"sample_rate": RATE, "n_fft": 512, "f_min": 0.0, "f_max": 8000.0, "n_mels": 64, "n_channels": 2}
SETTINGS = [
    SMALL,
    {"sample_rate": 22050, "n_fft": 1024, "f_min": 20.0, "f_max": 11025.0, "n_mels": 128, "n_channels": 3},
]
PROMPTS = make_prompts(
    "A recording of {article} {emotion} {instrument}", ["happy", "angry", "sad", "tender"], ["piano"]
)


def noise(clips, seconds, sample_rate=RATE):
    """Clips [clips, samples] of noise whose loudness and colour change from clip to clip and second to second."""
    random = torch.Generator().manual_seed(0)
    white = torch.rand(clips, seconds, sample_rate, generator=random) - 0.5
    brown = white.flatten(1).cumsum(1).view_as(white) / 100
    mix, gain = torch.rand(2, clips, seconds, 1, generator=random)
    return ((mix * white + (1 - mix) * brown) * gain).flatten(1).clamp(-0.9, 0.9)


def randomised(network, seed=1):
    """The network with every weight, bias and BatchNorm statistic drawn anew."""
    random = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for name, x in state.items():
        if name.startswith("spec.") or not x.is_floating_point():
            continue
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            state[name] = 0.7 + 0.6 * torch.rand(x.shape, generator=random)
        else:
            gain = {4: 1.4, 2: 0.7, 1: 0.1}[x.dim()]  # of convolutions, linear layers and biases
            state[name] = torch.randn(x.shape, generator=random) * gain / x[0].numel() ** 0.5
    state["spec_bn.running_mean"] -= 30  # dB
    state["spec_bn.running_var"] += 400
    network.load_state_dict(state)
    return network.eval()


# The EMOPIA network


def batch_norm(x, state, name):
    mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias)


def reference_scores(state, waveforms, sample_rate, n_fft, f_min, f_max, n_mels, **_):
    """The published network, written from its description with none of the package's code."""

    def conv(x, layer, i, stride):
        x = F.conv2d(x, state[f"{layer}.conv_{i}.weight"], state[f"{layer}.conv_{i}.bias"], stride=stride, padding=1)
        return batch_norm(x, state, f"{layer}.bn_{i}")

    window = torch.hann_window(n_fft)
    power = torch.stft(waveforms, n_fft, hop_length=n_fft // 2, window=window, return_complex=True).abs() ** 2
    mel = melscale_fbanks(n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate, mel_scale="htk").T @ power
    x = batch_norm(10 * mel.clamp(min=1e-10).log10()[:, None], state, "spec_bn")
    for i in range(1, 8):
        inner = conv(conv(x, f"layer{i}", 1, 2).relu(), f"layer{i}", 2, 1)
        x = (inner + conv(x, f"layer{i}", 3, 2)).relu()
    x = x.flatten(2).amax(2)
    x = batch_norm(F.linear(x, state["dense1.weight"], state["dense1.bias"]), state, "bn").relu()
    return F.linear(x, state["dense2.weight"], state["dense2.bias"]).sigmoid()


@pytest.mark.parametrize("setting", SETTINGS, ids=["16 kHz, 64 mels", "22.05 kHz, 128 mels"])
def test_the_emopia_network_computes_what_its_description_says(setting):
    network = randomised(ShortChunkResNet(**setting))
    clips = noise(3, 3, setting["sample_rate"])
    with torch.no_grad():
        scores = network(clips)
        torch.testing.assert_close(scores, reference_scores(network.state_dict(), clips, **setting), atol=1e-5, rtol=0)
    assert scores.std(0).min() > 1e-3  # it listens


@pytest.mark.parametrize("setting", SETTINGS, ids=["16 kHz, 64 mels", "22.05 kHz, 128 mels"])
def test_the_emopia_network_has_the_names_and_shapes_of_the_published_checkpoint(setting):
    c, bins = setting["n_channels"], setting["n_fft"] // 2 + 1
    expected = {"spec.spectrogram.window": (setting["n_fft"],), "spec.mel_scale.fb": (bins, setting["n_mels"])}
    norms, convolutions = {"spec_bn": 1, "bn": 4 * c}, {}
    widths = [1, c, c, 2 * c, 2 * c, 2 * c, 2 * c, 4 * c]
    for layer in range(1, 8):
        for i, inputs in ((1, widths[layer - 1]), (2, widths[layer]), (3, widths[layer - 1])):
            convolutions[f"layer{layer}.conv_{i}"] = (widths[layer], inputs, 3, 3)
            norms[f"layer{layer}.bn_{i}"] = widths[layer]
    for name, shape in {**convolutions, "dense1": (4 * c, 4 * c), "dense2": (4, 4 * c)}.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        expected |= {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
        expected[f"{name}.num_batches_tracked"] = ()
    assert {name: tuple(x.shape) for name, x in ShortChunkResNet(**setting).state_dict().items()} == expected


# The two rewards


@pytest.fixture(scope="module")
def emopia():
    return Emopia([randomised(ShortChunkResNet(**SMALL))], RATE, 3, CPU, "paper")


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([p.text for p in PROMPTS], vocab_size=300, special_tokens=special, show_progress=False)
    vocab = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) for m in vocab["merges"]]
    tokenizer = RobertaTokenizer(vocab=vocab["vocab"], merges=merges, model_max_length=64)
    extractor = ClapFeatureExtractor(
        sampling_rate=RATE, hop_length=640, max_length_s=10, fft_window_size=1024, frequency_min=40,
        frequency_max=8000, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    text = ClapTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=66, projection_dim=16,
    )  # fmt: skip
    audio = ClapAudioConfig(
        spec_size=128, num_mel_bins=64, window_size=8, patch_size=8, patch_stride=[8, 8], patch_embeds_hidden_size=8,
        hidden_size=16, depths=[1, 1], num_attention_heads=[1, 2], num_hidden_layers=2, projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(2)
    model = ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=16))
    folder = tmp_path_factory.mktemp("clap")
    model.save_pretrained(folder)
    ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    return Clap(TransformersEncoder(folder, folder, folder, CPU))


@pytest.fixture(params=["emopia", "clap"])
def reward(request):
    return request.getfixturevalue(request.param)


def columns(judgement):
    """Every number of a judgement, [columns, batch]."""
    return torch.stack([judgement.value, judgement.margin, judgement.correct, *judgement.details.values()])


def test_a_clip_scores_the_same_alone_and_in_a_batch(reward):
    clips = noise(4, 5)
    together = reward.score(clips, RATE, PROMPTS)
    assert columns(together).std(1).max() > 1e-3
    for i in range(4):
        alone = reward.score(clips[i : i + 1], RATE, PROMPTS[i : i + 1])
        torch.testing.assert_close(columns(alone)[:, 0], columns(together)[:, i], atol=1e-6, rtol=0)
        assert alone.predicted == together.predicted[i : i + 1]


def test_a_clip_scores_the_same_every_time(reward):
    clips = noise(4, 12)  # longer than a window of either reward
    first, second = (reward.score(clips, RATE, PROMPTS) for _ in range(2))
    assert torch.equal(columns(first), columns(second))


@pytest.mark.parametrize(("form", "column"), [("value", "value"), ("margin", "margin"), ("label", "correct")])
def test_the_reward_form_chooses_the_column(emopia, form, column):
    judgement = emopia.score(noise(4, 5), RATE, PROMPTS)
    assert torch.equal(judgement.reward(form), getattr(judgement, column))


# What cannot be judged

SPOILT = {
    "silent": lambda clip: clip * 0,
    "not finite": lambda clip: clip.index_fill(0, torch.tensor([7]), float("nan")),
    "not finite, infinite": lambda clip: clip.index_fill(0, torch.tensor([7]), float("inf")),
    "clipped": lambda clip: (clip * 1000).clamp(-1, 1),
}


def test_clips_that_cannot_be_judged_get_the_lowest_score_and_are_counted_in_a_warning(reward):
    good = noise(2, 5)
    clips = torch.stack([good[0], *(spoil(good[0]) for spoil in SPOILT.values()), good[1]])
    prompts = [PROMPTS[i % 4] for i in range(6)]
    message = rf"reward {reward.name}: 4 of 6 clips.*1 silent, 2 not finite, 1 clipped.*lowest score, -1"
    with pytest.warns(UserWarning, match=message):
        judgement = reward.score(clips, RATE, prompts)
    assert columns(judgement).isfinite().all()
    assert judgement.value[1:5].tolist() == [reward.lowest] * 4
    assert judgement.margin[1:5].tolist() == [reward.lowest - reward.highest] * 4
    assert judgement.judged.tolist() == [True] + [False] * 4 + [True]
    assert judgement.correct[1:5].tolist() == [0] * 4
    assert judgement.predicted[1:5] == [""] * 4
    for i in (0, 5):
        with warnings.catch_warnings(action="error"):
            alone = reward.score(clips[i : i + 1], RATE, prompts[i : i + 1])
        torch.testing.assert_close(columns(alone)[:, 0], columns(judgement)[:, i], atol=1e-6, rtol=0)
        assert alone.predicted == [judgement.predicted[i]]


@pytest.mark.filterwarnings("ignore:reward")
def test_all_numbers_are_finite_for_a_clip_with_one_huge_sample(reward):
    clips = noise(4, 5)
    clips[1, 7] = 1e20
    assert columns(reward.score(clips, RATE, PROMPTS)).isfinite().all()


# EMOPIA


@pytest.mark.parametrize(
    ("choice", "seconds", "starts"),  # in thirds of a second
    [
        ("paper", 5, [0]),
        ("paper", 10, [0, 9, 18]),
        ("cover", 3, [0]),
        ("cover", 5, [0, 6]),
        ("cover", 10, [0, 7, 14, 21]),
    ],
)
def test_emopia_averages_its_scores_over_windows(emopia, choice, seconds, starts):
    clips = noise(4, seconds)
    with torch.no_grad():
        first = [round(start * RATE / 3) for start in starts]
        scores = [emopia.networks[0](clips[:, i : i + 3 * RATE]) for i in first]
    expected = sum(scores) / len(starts)
    judge = Emopia(emopia.networks, RATE, 3, CPU, choice)
    judgement = judge.score(clips, RATE, PROMPTS)
    found = torch.stack([judgement.details[f"score_Q{i}"] for i in (1, 2, 3, 4)], 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(judgement.value, expected.diagonal() - expected.amax(1), atol=1e-6, rtol=0)
    assert judgement.predicted == [f"Q{i + 1}" for i in expected.argmax(1)]


def test_emopias_value_lies_between_minus_one_and_zero_and_is_zero_where_the_label_is_right(emopia):
    judgements = [emopia.score(noise(1, 5).expand(4, -1), RATE, PROMPTS), emopia.score(noise(4, 5), RATE, PROMPTS)]
    value, label = (torch.cat([j.reward(form) for j in judgements]) for form in ("value", "label"))
    assert ((value >= -1) & (value <= 0)).all()
    assert torch.equal(label, (value == 0).float())
    assert judgements[0].correct.sum() == 1  # one clip, four prompts: one of them is right


@pytest.mark.parametrize("sample_rate", [8000, 22050, 44100])
def test_emopia_listens_at_its_own_sample_rate(emopia, sample_rate):
    clips = noise(4, 4, sample_rate)
    found = emopia.score(clips, sample_rate, PROMPTS)
    expected = emopia.score(torchaudio_resample(clips, sample_rate, RATE), RATE, PROMPTS)
    torch.testing.assert_close(columns(found), columns(expected), atol=1e-6, rtol=0)


def test_a_clip_shorter_than_emopias_window_is_refused(emopia):
    with pytest.raises(UserError, match=r"^duration: 2 s is too short for reward 'emopia'; it needs 3 s"):
        emopia.score(noise(4, 2), RATE, PROMPTS)


@pytest.fixture
def emopia_files(emopia, tmp_path):
    folder = tmp_path / "rewards" / "emopia"
    folder.mkdir(parents=True)
    save_file(emopia.networks[0].state_dict(), folder / "model.safetensors")
    network = {k: v for k, v in SMALL.items() if k != "sample_rate"}
    layout = {"task": {"labels": ["Q1", "Q2", "Q3", "Q4"]}, "wav": {"sr": RATE, "input_length": 3}, "hparams": network}
    (folder / "hparams.yaml").write_text(yaml.safe_dump(layout))
    (folder / "settings.json").write_text('{"windows": "paper", "members": 1}')
    (folder / "manifest.json").write_text('{"shortest_clip": 3.0}')
    return folder


def test_emopia_loads_from_its_folder(emopia, emopia_files, tmp_path):
    loaded = finding.load_reward("emopia", tmp_path, CPU)
    clips = noise(4, 5)
    found, expected = (columns(r.score(clips, RATE, PROMPTS)) for r in (loaded, emopia))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_duration_that_is_too_short_is_refused_before_anything_is_generated(emopia_files, tmp_path):
    check_duration(["emopia"], tmp_path, 3.0)
    with pytest.raises(UserError, match=r"^duration: 2.5 s is too short for 'emopia'"):
        check_duration(["emopia"], tmp_path, 2.5)


@pytest.mark.parametrize("name", ["model.safetensors", "hparams.yaml"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "garbled"])
def test_a_reward_whose_files_are_harmed_gives_one_line_that_names_its_folder(emopia_files, tmp_path, name, harm):
    path = emopia_files / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"\xff\x00[")
    with pytest.raises(UserError, match=re.escape(str(emopia_files))) as caught:
        finding.load_reward("emopia", tmp_path, CPU)
    assert "\n" not in str(caught.value)


# EMOPIA as an ensemble


@pytest.fixture(scope="module")
def members():
    """Three classifiers that differ."""
    return [randomised(ShortChunkResNet(**SMALL), seed) for seed in (1, 2, 3)]


def heard_by_hand(networks, clips):
    """Scores of each network for each clip of 5 s, as lists [networks][clips][quadrants]: one window at a time."""
    with torch.no_grad():
        return [
            [torch.stack([n(c[None, i : i + 3 * RATE])[0] for i in (0, 2 * RATE)]).mean(0).tolist() for c in clips]
            for n in networks
        ]


def test_an_ensemble_scores_by_the_mean_of_its_members(members):
    clips = noise(4, 5)
    judgement = Emopia(members, RATE, 3, CPU, "cover").score(clips, RATE, PROMPTS)
    heard = heard_by_hand(members, clips)
    for i, prompt in enumerate(PROMPTS):
        true = int(prompt.quadrant[1]) - 1
        mean = [statistics.fmean(q) for q in zip(*(scores[i] for scores in heard), strict=True)]
        expected = mean[true] - max(mean)
        assert judgement.value[i].item() == judgement.margin[i].item() == pytest.approx(expected, abs=1e-6)
        assert [judgement.details[f"score_Q{q}"][i].item() for q in (1, 2, 3, 4)] == pytest.approx(mean, abs=1e-6)
        assert judgement.predicted[i] == f"Q{mean.index(max(mean)) + 1}"
        assert judgement.correct[i] == (mean.index(max(mean)) == true)
    assert len({scores.index(max(scores)) for member in heard for scores in member}) > 1  # they do not always agree


def test_identical_members_judge_as_one(members):
    clips = noise(4, 5)
    one, two = (Emopia(members[:1] * n, RATE, 3, CPU, "cover").score(clips, RATE, PROMPTS) for n in (1, 2))
    assert torch.equal(columns(one), columns(two))
    assert one.predicted == two.predicted


def test_an_ensemble_loads_from_its_folder(members, emopia_files, tmp_path):
    for number in (2, 3):
        save_file(members[number - 1].state_dict(), emopia_files / f"model-{number}.safetensors")
    (emopia_files / "settings.json").write_text('{"windows": "cover", "members": 3}')
    clips = noise(4, 5)
    found = finding.load_reward("emopia", tmp_path, CPU).score(clips, RATE, PROMPTS)
    expected = Emopia(members, RATE, 3, CPU, "cover").score(clips, RATE, PROMPTS)
    assert torch.equal(columns(found), columns(expected))


@pytest.mark.parametrize(("asked", "there", "way_out"), [(2, 1, "set it to 1."), (4, 2, "set it to 2 or less.")])
def test_more_members_than_there_are_name_the_key_and_the_number(emopia_files, members, asked, there, way_out):
    if there == 2:
        save_file(members[1].state_dict(), emopia_files / "model-2.safetensors")
        save_file(members[2].state_dict(), emopia_files / "model-4.safetensors")  # a gap ends the ensemble
    message = (
        f"emopia.members: {asked} classifiers are asked for, but the weights of this model have {there}; {way_out}"
    )
    with pytest.raises(UserError) as caught:
        Emopia.of_folder(emopia_files, CPU, "cover", asked)
    assert str(caught.value) == message


# CLAP


def similarity_by_hand(clap, clip, text):
    """Cosine of one sentence and one clip of at most 10 s at the model's rate."""
    sound = clap.encoder.extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")
    words = clap.encoder.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        heard = clap.encoder.model.get_audio_features(input_features=sound.input_features).pooler_output[0]
        read = clap.encoder.model.get_text_features(**words).pooler_output[0]
    return ((heard @ read) / heard.norm() / read.norm()).item()


@pytest.mark.parametrize("seconds", [3, 5, 10])
def test_clap_is_the_cosine_of_its_embeddings(clap, seconds):
    clips = noise(4, seconds)
    judgement = clap.score(clips, RATE, PROMPTS)
    expected = [similarity_by_hand(clap, clip, p.text) for clip, p in zip(clips, PROMPTS, strict=True)]
    torch.testing.assert_close(judgement.value, torch.tensor(expected), atol=1e-5, rtol=0)


def test_clap_hears_a_clip_of_more_than_ten_seconds_as_the_mean_of_windows_that_cover_it(clap):
    clip = noise(1, 18)
    judgement = clap.score(clip, RATE, PROMPTS[:1])
    windows = clip[0, : 10 * RATE], clip[0, -10 * RATE :]
    expected = [similarity_by_hand(clap, w, PROMPTS[0].text) for w in windows]
    assert abs(expected[0] - expected[1]) > 1e-3
    assert judgement.value.item() == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_claps_margin_is_zero_exactly_where_the_own_prompt_is_the_most_similar(clap):
    clips = noise(3, 5).repeat_interleave(4, 0)
    judgement = clap.score(clips, RATE, PROMPTS * 3)
    similarities = judgement.value.view(3, 4)  # [clip, prompt]
    expected = similarities - similarities.amax(1, keepdim=True)
    torch.testing.assert_close(judgement.margin.view(3, 4), expected, atol=1e-6, rtol=0)
    assert (judgement.margin <= 0).all()
    assert torch.equal(judgement.margin == 0, judgement.correct == 1)
    assert judgement.correct.view(3, 4).sum(1).tolist() == [1, 1, 1]
    best = [PROMPTS[i].quadrant for i in similarities.argmax(1).repeat_interleave(4)]
    assert judgement.predicted == best


def test_clap_listens_at_its_own_sample_rate(clap):
    clips = noise(4, 4, 44100)
    expected = clap.score(torchaudio_resample(clips, 44100, RATE), RATE, PROMPTS)
    torch.testing.assert_close(columns(clap.score(clips, 44100, PROMPTS)), columns(expected), atol=1e-6, rtol=0)


# Mixtures


class Fixed(Reward):
    """A reward with given scores."""

    headline = "value"
    forms = ("value", "margin", "label")

    def __init__(self, name: str, lowest: float, highest: float, value: list[float], margin: list[float]):
        self.name, self.lowest, self.highest = name, lowest, highest
        self.judgement = Judgement(torch.tensor(value), torch.tensor(margin), correct=torch.tensor([1.0, 0.0]))

    def judge(self, waveforms, sample_rate, prompts):
        return self.judgement


def test_a_mixture_is_the_weighted_mean_of_its_parts_each_scaled_by_its_range():
    clap = Fixed("clap", -1.0, 1.0, [0.5, -0.5], [0.0, -1.0])
    emopia = Fixed("emopia", -1.0, 0.0, [-0.2, -1.0], [-0.2, -1.0])
    mixture = Mixture("both", [(clap, 1.0), (emopia, 3.0)])
    judgement = mixture.score(noise(2, 1), RATE, PROMPTS[:2])
    torch.testing.assert_close(judgement.value, torch.tensor([(0.75 + 3 * 0.8) / 4, (0.25 + 3 * 0.0) / 4]))
    torch.testing.assert_close(judgement.margin, torch.tensor([(1.0 + 3 * 0.8) / 4, (0.5 + 3 * 0.0) / 4]))
    assert judgement.reward("label").tolist() == [1.0, 0.0]
    assert mixture.forms == ("value", "margin", "label")


def test_a_mixture_loads_with_its_parts_and_needs_the_longest_of_their_windows(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    for name in ("clap", "emopia"):
        fetching.fetch_reward(name, tmp_path, small())
    fetching.write_mixture("both", {"clap": 1.0, "emopia": 0.5}, tmp_path)
    mixture = finding.load_reward("both", tmp_path, CPU)
    assert [(part.name, weight) for part, weight in mixture.parts] == [("clap", 1.0), ("emopia", 0.5)]
    judgement = mixture.score(noise(2, 3), RATE, PROMPTS[:2])
    parts = [part.score(noise(2, 3), RATE, PROMPTS[:2]).value for part, _ in mixture.parts]
    torch.testing.assert_close(judgement.value, ((parts[0] + 1) / 2 + 0.5 * (parts[1] + 1)) / 1.5)
    with pytest.raises(UserError, match="too short for 'emopia'"):
        check_duration(["both"], tmp_path, 2.0)
    with pytest.warns(UserWarning, match="1 silent"):
        silent = mixture.score(noise(1, 3) * 0, RATE, PROMPTS[:1])
    assert (silent.value.item(), silent.reward("margin").item()) == (0.0, 0.0)


# A reward of one's own


def example() -> str:
    """The reward that docs/adding-a-reward.md shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "adding-a-reward.md").read_text(), re.DOTALL)
    return code


@pytest.fixture
def bright(tmp_path, monkeypatch):
    """The example as rewards/bright.py, in a copy of that folder."""
    folder = shutil.copytree(params_module.REWARDS, tmp_path / "copy")
    (folder / "bright.py").write_text(example())
    monkeypatch.setattr(params_module, "REWARDS", folder)
    monkeypatch.setattr(fetching, "REWARDS", folder)
    monkeypatch.setattr(rewards, "__path__", [*rewards.__path__, str(folder)])
    return folder


def test_the_example_of_the_docs_is_short_and_found_by_its_name(bright, tmp_path):
    assert len(example().splitlines()) <= 40
    chosen = parse(params_with(judges=["clap", "emopia", "held_out", "bright"], rewards=["bright"]))
    assert chosen.rewards == ["bright"]
    models = tmp_path / "models"
    assert fetching.fetch_reward("bright", models, small()) == "no weights"
    manifest = json.loads((models / "rewards" / "bright" / "manifest.json").read_text())
    assert {"bright.py", "base.py"} <= set(manifest["code"])
    assert "clap/reward.py" not in manifest["code"]
    reward = finding.load_reward("bright", models, CPU)
    time = torch.arange(RATE) / RATE
    clips = torch.stack([0.5 * torch.sin(2 * torch.pi * pitch * time) for pitch in (7000, 2000, 200)])
    value = reward.score(clips, RATE, PROMPTS[:3]).reward("value")
    assert value[0] > value[1] > value[2]
    torch.testing.assert_close(value, torch.tensor([7000, 2000, 200]) / (RATE / 2), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match=r"^reward_form: reward 'bright' has no 'label'; set reward_form to value"):
        finding.check_form(reward, "label")


def test_a_module_without_the_reward_is_a_clear_error(bright):
    (bright / "dark.py").write_text("x = 1")
    with pytest.raises(UserError, match=r"dark: defines no subclass of Reward with `name = 'dark'`"):
        finding.reward_class("dark")


@pytest.mark.parametrize(
    "line",
    [
        "from music_ddpo.rewards.clap.reward import Clap",
        "from music_ddpo.rewards.clap import reward",
        "import music_ddpo.rewards.clap.reward",
        "from .clap.reward import Clap",
        "from .clap import reward",
    ],
)
def test_every_way_to_import_counts_as_code_of_a_reward(bright, line):
    (bright / "dark.py").write_text(line)
    assert {"dark.py", "clap/__init__.py", "clap/reward.py", "clap/encoder.py", "base.py"} <= set(
        fetching.code_of("dark")
    )


def test_the_code_of_a_reward_is_what_it_imports():
    code = fetching.code_of("held_out")
    assert {"held_out.py", "clap/reward.py", "clap/hf.py", "clap/encoder.py", "base.py", "finding.py"} <= set(code)
    assert not any(name.startswith("emopia") for name in code)
