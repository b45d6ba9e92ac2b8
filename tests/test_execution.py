"""The device, the precision and the batch sizes: what `auto` means, and what happens where memory runs out."""

import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from music_ddpo.ddim import make_schedule
from music_ddpo.errors import UserError
from music_ddpo.execution import AUTO, ENOUGH, SHARE, Execution, bytes_for_backward, choose, portions
from music_ddpo.generator import Generator
from music_ddpo.params import load, parse
from music_ddpo.prompts import make_prompts
from music_ddpo.randomness import generator as random_generator
from music_ddpo.rollout import decode, sample

from conftest import params_with
from music_ddpo import adapter, ddpo, execution


def compute(**changes):
    return load(Path(__file__).parents[1] / "params.yaml").compute.model_copy(update=changes)


def test_auto_takes_the_gpu_in_bfloat16_where_there_is_one_and_else_the_cpu_in_float32():
    chosen = choose(compute(device="auto", precision="auto"))
    expected = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    assert (chosen.device.type, chosen.dtype) == expected
    assert (chosen.sample_batch, chosen.update_batch, chosen.decode_batch) == AUTO[expected[0]]


def test_what_is_asked_for_is_not_overruled():
    chosen = choose(compute(device="cpu", precision="bfloat16", sample_batch=3, update_batch=5, decode_batch=7))
    assert (chosen.device.type, chosen.dtype) == ("cpu", torch.bfloat16)
    assert (chosen.sample_batch, chosen.update_batch, chosen.decode_batch) == (3, 5, 7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_where_there_is_none_gives_an_error_that_names_the_key(device):
    with pytest.raises(UserError, match=f"^compute.device: '{device}'.*no CUDA device; use auto or cpu"):
        choose(compute(device=device))


def test_a_cuda_device_beyond_the_last_gives_an_error_that_names_the_key():
    with pytest.raises(UserError, match=r"^compute.device: 'cuda:99'"):
        choose(compute(device="cuda:99"))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="MPS is here")
def test_mps_where_there_is_none_gives_an_error_that_names_the_key():
    with pytest.raises(UserError, match=r"^compute.device: 'mps'"):
        choose(compute(device="mps"))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_portions_cover_every_row_once_in_order(count, size):
    rows = list(range(count))
    parts = [rows[part] for part in portions(count, size)]
    assert [row for part in parts for row in part] == rows
    assert all(0 < len(part) <= size for part in parts)


# Memory that runs out

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
TEXTS = ["A recording of an angry piano solo, high quality", "A recording of a sad piano solo, high quality"]


@pytest.fixture
def full(monkeypatch):
    """Makes memory run out in a method of Generator where its batch exceeds a limit."""

    def limit(method: str, rows: int, training: bool = False) -> None:
        original = getattr(Generator, method)

        def limited(self, latents, *arguments):
            if len(latents) > rows and (not training or torch.is_grad_enabled()):
                raise FULL
            return original(self, latents, *arguments)

        monkeypatch.setattr(Generator, method, limited)

    return limit


def batches(**changes: int) -> Execution:
    sizes = {"sample_batch": 8, "update_batch": 8, "decode_batch": 8}
    return Execution(torch.device("cpu"), torch.float32, **sizes | changes)


def told(warned: list, kind: str) -> list[str]:
    """Of each halving of a batch, and of nothing else, from what to what."""
    start = f"the memory of cpu is full; going on with compute.{kind} "
    assert all(str(w.message).startswith(start) for w in warned), [str(w.message) for w in warned]
    return [str(w.message).removeprefix(start) for w in warned]


def test_sampling_goes_on_with_half_the_batch_where_memory_runs_out(models, full):
    generator = models[0]
    conditioning = generator.encode(TEXTS, "Low quality")
    schedule = make_schedule(generator.scheduler, 3, 1.0)
    prompt = torch.arange(11) % 2

    def paths(chosen: Execution) -> torch.Tensor:
        noise = [random_generator(0, "memory", 0, i) for i in range(11)]
        return sample(generator, conditioning, prompt, schedule, noise, 3, 2.0, chosen)

    eight, two = paths(batches()), paths(batches(sample_batch=2))
    full("predict_noise", 3)
    chosen = batches()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        halved = paths(chosen)
    assert told(warned, "sample_batch") == ["4 instead of 8", "2 instead of 4"]
    assert (chosen.sample_batch, chosen.update_batch, chosen.decode_batch) == (2, 8, 8)
    assert torch.equal(halved, two)
    torch.testing.assert_close(halved, eight, atol=1e-4, rtol=1e-4)


def test_decoding_goes_on_with_half_the_batch_where_memory_runs_out(models, full):
    generator = models[0]
    latents = torch.randn(11, *generator.latent_shape(3), generator=random_generator(0, "memory"))
    eight, two = (decode(generator, latents, 3, batches(decode_batch=size)) for size in (8, 2))
    full("decode", 2)
    chosen = batches()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        halved = decode(generator, latents, 3, chosen)
    assert told(warned, "decode_batch") == ["4 instead of 8", "2 instead of 4"]
    assert torch.equal(halved, two)
    torch.testing.assert_close(halved, eight, atol=1e-5, rtol=0)


def train(models, checkpoint: Path, chosen: Execution, **changes):
    params = parse(params_with(duration=3, ddpo__learning_rate=0.003, **changes))
    generator, reward = deepcopy(models)
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    epochs = ddpo.train(generator, reward, prompts, params, 0, chosen, checkpoint)
    return [p.detach().clone() for p in adapter.parameters(generator)], epochs


@pytest.mark.parametrize(
    ("kind", "method", "training"),
    [
        ("update_batch", "predict_noise", True),
        ("sample_batch", "predict_noise", False),
        ("decode_batch", "decode", False),
    ],
)
def test_a_training_where_memory_runs_out_is_that_of_the_smaller_batch(models, full, tmp_path, kind, method, training):
    # Where sampling has no room for 8 neither has the update, whose batch is small from the start.
    others = {"update_batch": 2} if kind == "sample_batch" else {}
    expected, curve = train(models, tmp_path / "expected", batches(**others | {kind: 2}))
    full(method, 2, training)
    chosen = batches(**others)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        weights, epochs = train(models, tmp_path / "full", chosen)
    assert told(warned, kind) == ["4 instead of 8", "2 instead of 4"]  # and so not again in the second round
    assert getattr(chosen, kind) == 2
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert epochs == curve
    assert [e.ratio_error for e in epochs] == [0.0, 0.0]


def test_a_reward_whose_memory_runs_out_hears_fewer_clips_at_once(models, monkeypatch, tmp_path):
    expected, curve = train(models, tmp_path / "expected", batches(decode_batch=4), ddpo__epochs=1)
    score, heard = type(models[1]).score, []

    def limited(self, waveforms, *arguments):
        heard.append(len(waveforms))
        if len(waveforms) > 4:
            raise FULL
        return score(self, waveforms, *arguments)

    monkeypatch.setattr(type(models[1]), "score", limited)
    with pytest.warns(UserWarning, match=r"compute.decode_batch 4 instead of 8$"):
        weights, epochs = train(models, tmp_path / "full", batches(), ddpo__epochs=1)
    assert heard == [8, 4, 4]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert epochs == curve


@pytest.mark.parametrize("kind", execution.KINDS)
def test_memory_that_is_full_with_a_batch_of_one_gives_an_error_that_names_the_key(kind):
    def work(part: slice) -> None:
        raise FULL

    chosen = batches(**{kind: 2})
    with pytest.warns(UserWarning, match=f"{kind} 1 instead of 2"), pytest.raises(UserError) as error:
        chosen.each(kind, 3, work)
    assert str(error.value).startswith(f"compute.{kind}: the memory of cpu is full even with 1;")


def test_another_error_is_not_taken_for_full_memory():
    def work(part: slice) -> None:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="must match"):
        batches().each("decode_batch", 3, work)


# Batches that fit


def fitted(monkeypatch, total: float, bytes_each: float, automatic=execution.KINDS, **sizes) -> tuple[int, int, int]:
    monkeypatch.setattr(execution, "total_memory", lambda device: int(total))
    monkeypatch.setattr(execution, "bytes_for_backward", lambda *arguments: int(bytes_each))
    chosen = batches(**{"sample_batch": 32, "update_batch": 32, "decode_batch": 2} | sizes)
    chosen.automatic = tuple(automatic)
    chosen.fit(None, None, 5, 2.0)
    return chosen.sample_batch, chosen.update_batch, chosen.decode_batch


@pytest.mark.parametrize(
    ("total", "each", "sample_batch", "update_batch"),
    [
        (30e9, 1e6, 32, 32),  # never more than AUTO
        (1e9 / SHARE, 1e9 / 7.9, 16, 4),  # 7.9 fit, and 4 is the power of two below
        (1e9 / SHARE, 1e9 / 8.1, 32, 8),
        (1e9 / SHARE, 1e9 / 1.5, 4, 1),
        (1e9 / SHARE, 1e12, 4, 1),  # as little as can be; memory may yet suffice
        (1e15, ENOUGH / 5, 16, 4),  # no more on a larger card
    ],
)
def test_automatic_batches_are_the_power_of_two_below_what_fits(monkeypatch, total, each, sample_batch, update_batch):
    assert fitted(monkeypatch, total, each) == (sample_batch, update_batch, 2)


def test_what_the_user_gave_is_not_made_to_fit(monkeypatch):
    small = {"total": 1e9 / SHARE, "bytes_each": 1e9 / 4.5}
    assert fitted(monkeypatch, **small, automatic=["sample_batch"]) == (16, 32, 2)
    assert fitted(monkeypatch, **small, automatic=["update_batch"], sample_batch=7) == (7, 4, 2)
    assert fitted(monkeypatch, **small, automatic=["decode_batch"], sample_batch=33, update_batch=77) == (33, 77, 2)


def test_processes_on_one_cpu_share_its_memory(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert fitted(monkeypatch, 1e9 / SHARE, 1e9 / 8.1) == (8, 2, 2)


def kept_for_backward(generator, conditioning, duration: float, pairs: int, guidance_scale: float) -> int:
    """Counted anew: bytes of the distinct storages that autograd saves, all held alive, but for the weights."""
    weights = {p.untyped_storage().data_ptr() for p in generator.unet.parameters()}
    saved = []
    rows = conditioning.rows(torch.zeros(pairs, dtype=torch.long))
    latents = torch.zeros(pairs, *generator.latent_shape(duration))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        generator.predict_noise(latents, torch.full((pairs,), 500), rows, guidance_scale)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
    return sum(size for pointer, size in storages.items() if pointer not in weights)


def test_the_memory_that_a_pair_takes_is_what_autograd_keeps(models):
    generator = deepcopy(models[0])
    conditioning = generator.encode(TEXTS, "Low quality")
    adapter.add(generator, 8, 8.0, 0)
    asked = ((5, 2.0), (10, 2.0), (5, 1.0))
    five, ten, unguided = (bytes_for_backward(generator, conditioning, *each) for each in asked)
    # What lies before the first adapter is counted, but not kept: a tenth.
    two = kept_for_backward(generator, conditioning, 5, 2, 2.0) / 2
    assert two <= five <= 1.15 * two
    assert ten == pytest.approx(2 * five, rel=0.02)  # the conditioning does not grow
    assert unguided == pytest.approx(five / 2, rel=0.01)
    assert all(p.grad is None for p in adapter.parameters(generator))


def test_a_training_takes_batches_that_fit(models, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(execution, "total_memory", lambda device: int(4500 / SHARE))
    monkeypatch.setattr(execution, "bytes_for_backward", lambda *arguments: asked.append(arguments[2:]) or 1000)
    chosen = choose(compute(device="cpu"))
    train(models, tmp_path / "checkpoint", chosen, ddpo__epochs=1, ddpo__trajectories_per_epoch=2)
    assert asked == [(3, 2.0)]
    assert (chosen.sample_batch, chosen.update_batch) == (16, 4)
