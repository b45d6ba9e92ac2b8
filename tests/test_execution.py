"""The device, the precision and the batch sizes: what `auto` means, and a device that is not there."""

from pathlib import Path

import pytest
import torch

from music_ddpo.errors import UserError
from music_ddpo.execution import AUTO, choose, portions
from music_ddpo.params import load


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
