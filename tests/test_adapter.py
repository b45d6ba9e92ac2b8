"""LoRA adapters: what they change, and that stock peft and diffusers can use them."""

from __future__ import annotations

import pytest
import torch
from diffusers import AudioLDM2Pipeline
from peft import PeftModel

from helpers.project import LORA, MINI, NEGATIVE, PROMPT, denoise, load_generator, saved_adapter
from music_ddpo.core.errors import UserError
from music_ddpo.core.randomness import random_generator
from music_ddpo.model import adapter


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone():
    before = denoise(load_generator(), [PROMPT])
    first, again, other = load_generator(), load_generator(), load_generator()
    weights = [adapter.add(g, LORA, seed) for g, seed in ((first, 0), (again, 0), (other, 1))]
    assert torch.equal(denoise(first, [PROMPT]), before)
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


@pytest.mark.parametrize("targets", ["cross", "all"])
def test_the_attention_layers_that_are_asked_for_are_trained_and_everything_else_is_frozen(targets):
    generator = load_generator()
    attends = {None: 0, 64: 0}  # what the layers' keys are computed from: the latents, or tokens of 64 dimensions
    for name, module in generator.unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            attends[
                None if module.cross_attention_dim == module.query_dim and not module.is_cross_attention else 64
            ] += 1
    adapter.add(generator, LORA.model_copy(update={"targets": targets}), 0)
    trained = [name for name, p in generator.unet.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    layers = attends[64] + (attends[None] if targets == "all" else 0)
    assert len(trained) == layers * 4 * 2  # q, k, v and out, each with an A and a B
    tokens = [name for name in trained if name.endswith("to_k.lora_A.default.weight")]
    assert targets == "all" or not any(".attentions.0." in name or ".attn1." in name for name in tokens)
    frozen = [m for m in generator.pipeline.components.values() if isinstance(m, torch.nn.Module)]
    assert not any(p.requires_grad for m in frozen for n, p in m.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize("targets", ["cross", "all"])
def test_stock_peft_loads_a_saved_adapter_onto_a_stock_pipeline_with_the_same_output(targets, tmp_path):
    generator = saved_adapter(tmp_path / "adapter", targets)
    ours = generator.decode(denoise(generator, [PROMPT], steps=9), 5)

    pipe = AudioLDM2Pipeline.from_pretrained(MINI / "pipeline")
    pipe.unet = PeftModel.from_pretrained(pipe.unet, tmp_path / "adapter")
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, *generator.latent_shape(5), generator=random_generator(0, "test", 0, 0))
    stock = pipe(
        PROMPT, negative_prompt=NEGATIVE, audio_length_in_s=5, num_inference_steps=9, latents=latents,
        output_type="pt",
    ).audios  # fmt: skip
    torch.testing.assert_close(stock, ours, atol=1e-5, rtol=0)
    untouched = load_generator().decode(denoise(load_generator(), [PROMPT], steps=9), 5)
    assert (untouched - ours).abs().max() > 1e-2


@pytest.mark.parametrize("targets", ["cross", "all"])
def test_a_loaded_adapter_sounds_like_the_saved_one_bit_for_bit(targets, tmp_path):
    generator = saved_adapter(tmp_path / "adapter", targets)
    loaded = load_generator()
    adapter.load(loaded, tmp_path / "adapter")
    assert torch.equal(denoise(loaded, [PROMPT]), denoise(generator, [PROMPT]))


def test_a_missing_or_truncated_adapter_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="contains no adapter"):
        adapter.load(load_generator(), tmp_path / "nothing")
    saved_adapter(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is damaged .*find -L \.dvc/cache"):
        adapter.load(load_generator(), tmp_path / "adapter")
