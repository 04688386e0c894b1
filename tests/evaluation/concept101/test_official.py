"""Where `mip.py concept101` does as the official code, and what it says where it does otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mip_adapter.commands.concept101.remarks import of_settings, of_texts
from mip_adapter.commands.concept101.settings import Settings, guard
from mip_adapter.evaluation.concept101.dataset import Concept, Pair, read_pairs, references
from mip_adapter.evaluation.concept101.schedule import official_sigmas, official_timesteps, start_factor
from mip_adapter.evaluation.concept101.score import texts_of
from mip_adapter.weights.spec import ARCHITECTURES, AdapterSpec, EncoderNeed
from PIL import Image

from ...support.concept101 import line, table
from ...support.sentences import told
from ..test_personalization import Clip, cosine


def test_the_official_noise_levels_are_those_of_diffusers():
    """Printed by EulerDiscreteScheduler of diffusers 0.23.1, which the official code asks for, with SDXL's settings:
    betas "scaled_linear" from 0.00085 to 0.012, timestep_spacing "leading", steps_offset 1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    sigmas = ((1 - alphas) / alphas).sqrt()
    got = official_sigmas(sigmas, 30)
    assert official_timesteps(30) == [*range(958, 0, -33)]
    first, last = [11.476851, 9.543586, 8.004313, 6.768384], [0.267653, 0.182166, 0.041314, 0.0]
    torch.testing.assert_close(got[[0, 1, 2, 3, -4, -3, -2, -1]], torch.tensor(first + last), rtol=1e-5, atol=1e-6)
    assert float(got[0]) * start_factor(got, float(sigmas[-1])) == pytest.approx(11.520334, rel=1e-5)
    assert official_timesteps(1) == [1] and official_timesteps(999)[0] == 999
    assert start_factor(official_sigmas(sigmas, 999), float(sigmas[-1])) == 1  # the host does it there
    for wrong in (0, 1000):
        told(lambda wrong=wrong: official_timesteps(wrong), "1 to 999 steps", f"not {wrong}: set another --steps")


@pytest.mark.parametrize("schedule", ["host", "official"])
def test_pictures_are_sampled_at_the_levels_that_were_asked_for(host, data: Path, schedule: str):
    """What the sampler hands to the model: noise of √(σ² + 1), then every level in turn."""
    import comfy.sample
    from mip_adapter.commands.concept101.comfy_painter import Painter

    painter = Painter(Settings("miniature", "miniature", steps=4, side=64, schedule=schedule))  # pyright: ignore[reportArgumentType]
    model, seen = painter.with_references(references(read_pairs(data)[0])), []

    def note(apply, given):
        seen.append((given["input"][:1].clone(), given["timestep"][0].clone()))
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(note)
    painter.picture(model, "a cat", 1)
    sampling = model.get_model_object("model_sampling")
    levels = [int(sampling.timestep(sigma)) for _, sigma in seen]
    assert levels == ([999, 666, 333, 0] if schedule == "host" else [751, 501, 251, 1])
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), 420, [1])
    x, sigma = seen[0]
    torch.testing.assert_close(x.cpu(), noise * (1 + sigma.cpu() ** 2).sqrt(), rtol=1e-4, atol=1e-4)


def test_texts_from_file_names():
    """As the official code would have it: the name up to its first period, and one file for the same prompt."""
    concept = Concept("cat", "cat", ())
    prompts = ("a cat.", "a cat inside a pot", "a toy cat.", "a cat v1.5 on it.", "a toy cat.")
    pair = Pair(0, (concept, concept), prompts)
    folder: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        folder[prompt + "_gen.png"] = number
    official = {number: name.split(".")[0] + "." for name, number in folder.items()}
    assert texts_of(pair, True) == official
    assert official == {0: "a cat.", 1: "a cat inside a pot_gen.", 4: "a toy cat.", 3: "a cat v1."}
    assert texts_of(pair, False) == dict(enumerate(prompts))
    (said,) = of_texts([pair, Pair(1, (concept, concept), ("a dog.",))], False)
    assert "2 of them end in “_gen.” or early, and 1 pairs" in said and "--file-name-texts" in said
    (said,) = of_texts([pair], True)
    assert said.startswith("CLIP-T's texts come from file names") and "--file-name-texts" not in said
    assert of_texts([Pair(1, (concept, concept), ("a dog.", "a cat."))], False) == []


def test_scores_by_file_names(alone: Path, data: Path, encoders, tmp_path: Path):
    """The second and third prompt of each pair end in no period; the pictures are not made again."""
    from mip_adapter.commands.concept101.command import main

    copy, clip = shutil.copytree(alone, tmp_path / "copy"), Clip(encoders[0])
    assert main([*line(data, copy, encoders), "--file-name-texts"]) == 0
    whole, before = (table(folder) for folder in (copy, alone))
    pair = read_pairs(data)[0]
    words = [pair.prompts[0], *(f"{prompt}_gen." for prompt in pair.prompts[1:])]
    files = sorted((copy / "pictures" / pair.name).iterdir())
    cosines = [cosine(clip.picture(Image.open(f)), clip.words(w)) for f, w in zip(files, words, strict=True)]
    assert whole["pairs"][0]["clip_t"] == pytest.approx(np.mean([2.5 * max(each, 0) for each in cosines]), abs=1e-5)
    assert whole["clip_t"] != before["clip_t"] and whole["clip_i"] == pytest.approx(before["clip_i"], abs=1e-6)
    assert len([*copy.glob("scores-*")]) == 2
    for made, way in ((whole, "come from file names"), (before, "are the prompts")):
        assert any(f"CLIP-T's texts {way}" in each and "6 of them end" in each for each in made["remarks"])


def spec(architecture: str, tokens: int) -> AdapterSpec:
    context, runs = ARCHITECTURES[architecture]
    widths = [width for count, width in runs for _ in range(count)]
    need = EncoderNeed("an encoder", "image_embeds", 8)
    return AdapterSpec("base", context, tokens, need, True, tuple((2 * n + 1, w) for n, w in enumerate(widths)))


@pytest.mark.parametrize(
    ("changes", "adapter", "says"),
    [
        ({}, ("SDXL", 4), ["SDXL base 1.0, the plus rows over RealVisXL 1.0; this row over some.safetensors."]),
        ({}, ("SD1.5", 4), ["some.safetensors, which is no SDXL: its adapter is for SD1.5"]),
        ({"checkpoint": "miniature"}, None, ["this row over the miniature"]),
        ({"cropped": False}, ("SDXL", 4), ["References are whole pictures"]),
        ({"scale": 0.65}, ("SDXL", 4), ["scale 0.65 instead of 0.75"]),
        ({"scale": 0.75}, ("SDXL", 16), ["scale 0.75 instead of 0.65"]),
        ({"scale": 1.0}, None, ["scale 1.0 instead of 0.75 or 0.65"]),
        ({"strategy": "concat"}, ("SDXL", 4), ["strategy concat instead of relevance", "how the published IP-Adapter"]),
        ({"head": False, "steps": 20}, ("SDXL", 4), ["head False instead of True, steps 20 instead of 30", "t = 951"]),
        ({"negative": "", "vae": "a/b.pt"}, ("SDXL", 4), ["another negative prompt, the VAE b.pt"]),
        ({}, ("SDXL", 4), ["from t = 999; the official code begins at t = 958", "--schedule official"]),
    ],
)
def test_remarks_say_what_is_otherwise(changes: dict, adapter, says: list[str]):
    settings = Settings(**({"checkpoint": "models/some.safetensors", "adapter": "x"} | changes))
    said = of_settings(settings, adapter and spec(*adapter))
    assert all(any(words in each for each in said) for words in says)


def test_a_run_as_the_official_code_has_only_its_base_to_be_remarked():
    for tokens, scale in ((4, 0.75), (4, None), (16, 0.65), (16, None)):
        settings = Settings("sd_xl_base_1.0.safetensors", "x", scale=scale, schedule="official")
        (said,) = of_settings(settings, spec("SDXL", tokens))
        assert said.endswith("this row over sd_xl_base_1.0.safetensors.")


def test_folders_from_before_the_schedule_could_be_chosen_go_on(tmp_path: Path):
    settings = Settings("miniature", "miniature")
    assert "schedule" not in settings.described()
    guard(tmp_path, settings.described())
    official = Settings("miniature", "miniature", schedule="official").described()
    told(lambda: guard(tmp_path, official), "schedule was None, is official")
