"""The device, the precision and the batch: what `auto` means, and what happens if memory runs out."""

from copy import deepcopy

import pytest
import torch

from helpers.project import CPU, LORA, PROJECT, PROMPT
from music_ddpo.core.errors import UserError
from music_ddpo.core.params_file import load
from music_ddpo.machine import batches
from music_ddpo.machine.batches import AUTO, ENOUGH, SHARE, Execution, activation_bytes, choose, portions
from music_ddpo.model import adapter
from music_ddpo.model.policy import Policy

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def compute(**changes):
    return load(PROJECT / "params.yaml").compute.model_copy(update=changes)


def test_auto_takes_the_gpu_in_bfloat16_if_there_is_one_and_else_the_cpu_in_float32():
    chosen = choose(compute(device="auto", precision="auto"))
    expected = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    assert (chosen.device.type, chosen.dtype) == expected
    assert (chosen.batch, chosen.decode_batch, chosen.automatic) == (*AUTO[expected[0]], True)


def test_given_values_are_used_as_they_are():
    chosen = choose(compute(device="cpu", precision="bfloat16", batch=5, decode_batch=7))
    assert (chosen.device.type, chosen.dtype, chosen.batch, chosen.decode_batch) == ("cpu", torch.bfloat16, 5, 7)
    tried = []
    chosen.fit(tried.append, 100, torch.nn.Linear(1, 1))
    assert (chosen.batch, tried) == (5, [5])
    chosen.fit(tried.append, 3)  # more are never processed together
    assert (chosen.batch, tried) == (3, [5, 3])


def test_a_given_batch_that_does_not_fit_is_refused_with_the_value_to_set():
    def step(clips: int) -> None:
        raise FULL

    chosen = choose(compute(device="cpu", batch=6))
    with pytest.raises(UserError, match=r"^compute.batch: memory ran out with 6 clip.*set compute.batch to 3"):
        chosen.fit(step, 100)


@pytest.mark.parametrize("device", ["cuda:99", "mps", *([] if torch.cuda.is_available() else ["cuda"])])
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="MPS is available")
def test_a_device_that_is_not_there_gives_an_error_that_names_the_key(device):
    with pytest.raises(UserError, match=rf"^compute.device: '{device}'.*use auto or cpu"):
        choose(compute(device=device))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_portions_cover_every_row_once_in_order(count, size):
    parts = list(portions(range(count), size))
    assert [row for part in parts for row in part] == list(range(count))
    assert all(0 < len(part) <= size for part in parts)


def fitted(monkeypatch, total: float, each: float, most: int = 100, fits: int = 1000) -> int:
    """The batch on a device of `total` bytes where a clip needs `each`, and where `fits` clips really fit."""

    def step(clips: int) -> None:
        if clips > fits:
            raise FULL

    monkeypatch.setattr(batches, "total_memory", lambda device: int(total))
    monkeypatch.setattr(batches, "activation_bytes", lambda module, step: step() or int(each))
    chosen = Execution(CPU, torch.float32, 32, 2, automatic=True)
    chosen.fit(step, most, torch.nn.Linear(1, 1))
    assert chosen.decode_batch == 2
    return chosen.batch


@pytest.mark.parametrize(
    ("total", "each", "batch"),
    [
        (30e9, 1e6, 32),  # never more than AUTO
        (1e9 / SHARE, 1e9 / 7.9, 4),  # 7.9 fit, and 4 is the power of two below
        (1e9 / SHARE, 1e9 / 8.1, 8),
        (1e9 / SHARE, 1e12, 1),  # memory may still be enough
        (1e15, ENOUGH / 5, 4),  # no more on a larger card
    ],
)
def test_an_automatic_batch_is_the_power_of_two_below_what_fits(monkeypatch, total, each, batch):
    assert fitted(monkeypatch, total, each) == batch


def test_an_automatic_batch_is_at_most_the_clips_of_a_minibatch(monkeypatch):
    assert fitted(monkeypatch, 30e9, 1e6, most=12) == 12


def test_an_automatic_batch_is_tried_and_halved_until_it_fits(monkeypatch):
    assert fitted(monkeypatch, 30e9, 1e6, fits=9) == 8


def test_processes_on_one_cpu_share_its_memory(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert fitted(monkeypatch, 1e9 / SHARE, 1e9 / 8.1) == 2


def test_memory_that_is_not_enough_for_one_clip_gives_an_error_that_names_the_key(monkeypatch):
    with pytest.raises(UserError, match=r"^compute.batch: memory ran out with 1 clip.*shorter duration"):
        fitted(monkeypatch, 30e9, 1e6, fits=0)


@pytest.mark.parametrize(("size", "way_out"), [(8, "set compute.batch to 4"), (1, "use a shorter duration")])
def test_memory_that_runs_out_later_gives_an_error_with_the_value_to_set(size, way_out):
    with (
        pytest.raises(UserError, match=rf"^compute.batch: .* {size} clip.*{way_out}"),
        batches.full_memory_explained("batch", size),
    ):
        raise FULL


def test_another_error_is_not_taken_for_full_memory():
    with pytest.raises(RuntimeError, match="must match"), batches.full_memory_explained("batch", 8):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")


def test_activation_bytes_are_what_autograd_keeps_and_grow_with_the_clips(models):
    generator = deepcopy(models[0])
    adapter.add(generator, LORA, 0)

    def step(policy: Policy, clips: int) -> None:
        policy.trial(clips).sum().backward()

    def kept(duration: float, clips: int, guidance: float = 2.0) -> int:
        policy = Policy(generator, [PROMPT], "Low quality", 4, duration, guidance)
        return activation_bytes(generator.unet, lambda: step(policy, clips))

    one = kept(5, 1)
    assert kept(5, 2) == pytest.approx(2 * one, rel=0.05)
    assert kept(10, 1) == pytest.approx(2 * one, rel=0.05)
    assert kept(5, 1, guidance=1.0) == pytest.approx(one / 2, rel=0.05)
    saved = []
    policy = Policy(generator, [PROMPT], "Low quality", 4, 5, 2.0)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        step(policy, 1)  # counted in another way: all saved tensors are kept alive
    weights = {p.untyped_storage().data_ptr() for p in generator.unet.parameters()}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
    assert one == pytest.approx(sum(n for pointer, n in storages.items() if pointer not in weights), rel=0.1)
