"""Training over ComfyUI's own models: the golden UNet, and the miniature from dataset to file."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ..support.golden import FOLDER, host_unet, read, relative_error
from ..support.training_world import small_recipe, write_folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unet(host):
    return host_unet()


def golden_case(model, family: str = "base", **changes):
    """The golden UNet as a frozen model, its adapter, its conditional case as a batch, and the golden data."""
    import comfy.model_patcher
    from mip_adapter.training.comfy_model import HostModel
    from mip_adapter.training.objective import Batch
    from mip_adapter.weights.adapter import load_adapter

    from ..attention.test_golden import _time_embedding

    data, metadata = read(f"unet_{family}")
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    frozen = HostModel(patcher, None, None, None, small_recipe(**changes))
    counts = data["object_token_counts"].tolist()
    rows = 2
    texts = tuple(data["object_text"][i, 1 : 1 + n] for i, n in enumerate(counts))
    batch = Batch(
        ids=("a", "b"),
        indices=(0, 1),
        latents=data["x"].repeat(rows, 1, 1, 1),
        context=data["context"].repeat(rows, 1, 1),
        vector=torch.cat([data["pooled"], _time_embedding(data["time_ids"])], 1).repeat(rows, 1),
        features=torch.cat([data["image_embeds"]] * rows),
        texts=(texts,) * rows,
        mask=torch.ones(rows, *data["x"].shape[-2:]),
    )
    return frozen, load_adapter(FOLDER / f"{family}_ip_adapter.bin"), batch, data, float(metadata["scale"])


@pytest.mark.parametrize("family", ["base", "plus"])
def test_prediction_equals_the_official_one(unet, family: str) -> None:
    from mip_adapter.attention.options import Merge
    from mip_adapter.training.site import Merging, RowObjects
    from mip_adapter.weights.projection import project

    frozen, adapter, batch, data, scale = golden_case(unet, family)
    assert frozen.prediction == "eps" and len(frozen.alphas) == 1000
    objects = RowObjects.gather(project(adapter, batch.features), batch.texts)
    merging = Merging(adapter.site_weights, objects, Merge(), "image", scale)
    got = frozen.predict(batch.latents, torch.tensor([901, 40]), batch, merging)
    got = got.detach()
    assert relative_error(got[:1], data["eps_901"]) < 1e-4
    assert relative_error(got[1:], data["eps_40"]) < 1e-4


@pytest.mark.parametrize("kind", ["eps", "lcm", "edm"])
def test_the_unet_is_told_the_timesteps_of_the_host(unet, kind: str) -> None:
    """Against the host's own way from sigma to answer, for samplings whose timesteps are not 0 to 999, too."""
    import comfy.model_patcher
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
    from mip_adapter.training.comfy_model import HostModel

    patcher = comfy.model_patcher.ModelPatcher(unet, torch.device("cpu"), torch.device("cpu"))
    if kind == "lcm":
        (patcher,) = ModelSamplingDiscrete().patch(patcher, "lcm", False)
    if kind == "edm":
        (patcher,) = ModelSamplingContinuousEDM().patch(patcher, "v_prediction", 120.0, 0.002)
    frozen = HostModel(patcher, None, None, None, small_recipe())
    sampling = patcher.get_model_object("model_sampling")
    at = torch.tensor([3, len(sampling.sigmas) - 1])
    torch.testing.assert_close(frozen.unet_timesteps[at], sampling.timestep(sampling.sigmas[at]).float())
    assert (frozen.unet_timesteps.tolist() == list(range(1000))) == (kind == "eps")
    # x = √ᾱ·x₀ + √(1 − ᾱ)·ε is what the host makes of x₀ + σ·ε.
    x0, eps, alpha = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), frozen.alphas[at].view(-1, 1, 1, 1)
    sigmas = sampling.sigmas[at].float()
    theirs = sampling.calculate_input(sigmas, x0 + sigmas.view(-1, 1, 1, 1) * eps)
    torch.testing.assert_close(alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps, theirs, rtol=1e-4, atol=1e-5)


def test_models_that_want_more_than_a_latent_are_refused(unet, monkeypatch) -> None:
    monkeypatch.setattr(unet.diffusion_model, "in_channels", 9)
    with pytest.raises(ValueError, match="reads 9 channels .* inpainting"):
        golden_case(unet)


def test_nobody_keeps_the_model_when_training_is_over(unet) -> None:
    """Not even until Python next looks for cycles: the host's models are gigabytes."""
    frozen, *_ = golden_case(unet)
    gone = weakref.ref(frozen)
    gc.disable()
    try:
        del frozen
        assert gone() is None
    finally:
        gc.enable()


def official_patch(
    site, weights: dict[str, Tensor], attn2, tokens: Tensor, texts: list[Tensor], normalization: str = "sum"
):
    """The official training forward at one site, written down object by object. tokens [B, M, T, X]. The paper divides
    by the mean of the maps where the official code divides by their sum."""

    def patch(q, k, v, options):
        heads = site.heads

        def attend(key, value):
            split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, key, value)]
            return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

        text = attend(k, v)
        features, maps = [], []
        for i, words in enumerate(texts):
            part = {key: weights[f"ip_adapter.{site.number}.{key}.weight"] for key in ("to_k_ip", "to_v_ip")}
            features.append(attend(tokens[:, i] @ part["to_k_ip"].T, tokens[:, i] @ part["to_v_ip"].T))
            word_keys = attn2.to_k(words).unflatten(-1, (heads, -1)).transpose(0, 1)  # [h, L, d]
            queries = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, h, N, d]
            scores = word_keys @ queries.transpose(-1, -2) / word_keys.shape[-1] ** 0.5
            maps.append(scores.softmax(-1).mean((1, 2)).detach())  # [B, N]
        shares = torch.stack(maps) / getattr(torch.stack(maps), normalization)(0)
        gate = torch.sigmoid(text @ weights[f"ip_adapter.{site.number}.text_to_weight.weight"].T)
        gate = gate / gate.mean(1, keepdim=True)
        return text + sum(share.unsqueeze(-1) * gate * each for share, each in zip(shares, features, strict=True))

    return patch


@pytest.mark.parametrize(("normalization", "noise_offset"), [("sum", 0.0), ("mean", 0.1)])
def test_one_step_equals_the_recipe_written_down(unet, normalization: str, noise_offset: float) -> None:
    """AdamW after one pass through the whole UNet; the transcription knows neither our site nor our loop."""
    from mip_adapter.training.objective import Objective, draw_noise
    from mip_adapter.training.trainable import TrainableAdapter, flat_tensors
    from mip_adapter.weights.projection import project

    frozen, adapter, batch, *_ = golden_case(unet, checkpointing=True)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    recipe = small_recipe(learning_rate=1e-4, normalization=normalization, noise_offset=noise_offset)
    student = TrainableAdapter(adapter, recipe)
    loss = Objective(student, frozen, recipe)(batch)
    loss.backward()
    torch.optim.AdamW(student.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay).step()

    weights = {key: tensor.float().clone() for key, tensor in flat_tensors(adapter).items()}
    learnt = [key for key in weights if key.startswith("ip_adapter.")]
    for key in learnt:
        weights[key].requires_grad_()
    noise, steps = draw_noise(batch, recipe, 1000)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = (1 - betas).cumprod(0)[steps].float().view(-1, 1, 1, 1)
    tokens = project(adapter, batch.features).unflatten(0, (2, -1))
    patches = {
        site.key: official_patch(
            site, weights, frozen._attentions[site.key], tokens, list(batch.texts[0]), normalization
        )
        for site in frozen.sites
    }
    predicted = unet.diffusion_model(
        alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise,
        steps.float(),
        context=batch.context,
        y=batch.vector,
        transformer_options={"patches_replace": {"attn2": patches}},
    )
    expected = F.mse_loss(predicted, noise)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert list(student.keys) == learnt
    for key, own in zip(student.keys, student.parameters(), strict=True):
        assert relative_error(own.grad, weights[key].grad) < 1e-3, key
        with torch.no_grad():  # AdamW's first step: decay, then m̂ / (√v̂ + ε) = g / (|g| + ε)
            gradient, old = own.grad, weights[key]
            new = old * (1 - 1e-4 * 0.01) - 1e-4 * gradient / (gradient.abs() + 1e-8)
        assert relative_error(own.detach() - old.detach(), new - old.detach()) < 1e-3, key
    after = unet.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_checkpointing_changes_no_gradient_and_leaves_no_trace(unet) -> None:
    """The host's options change while its blocks run; computed again, every block must find its own."""
    from mip_adapter.training.comfy_model import _heavy_blocks
    from mip_adapter.training.objective import Objective
    from mip_adapter.training.trainable import TrainableAdapter

    gradients = []
    for checkpointing in (False, True):
        frozen, adapter, batch, *_ = golden_case(unet, "plus", checkpointing=checkpointing)
        recipe = small_recipe(train="all")
        student = TrainableAdapter(adapter, recipe)
        Objective(student, frozen, recipe)(batch).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    assert all(relative_error(b, a) < 1e-5 for a, b in zip(*gradients, strict=True))
    blocks = list(_heavy_blocks(unet.diffusion_model))
    assert len(blocks) > 20 and not any("forward" in vars(block) for block in blocks)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_targets_are_what_the_host_denoises_with(host, kind: str) -> None:
    import comfy.model_sampling as kinds
    from mip_adapter.training.comfy_model import prediction_of
    from mip_adapter.training.objective import diffuse

    class Sampling(kinds.ModelSamplingDiscrete, kinds.EPS if kind == "eps" else kinds.V_PREDICTION):
        pass

    class Flow(kinds.ModelSamplingDiscreteFlow, kinds.CONST):
        pass

    sampling = Sampling()
    assert prediction_of(sampling) == kind
    latents, noise, sigma = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), sampling.sigmas[[10, 400, 900]]
    alpha = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
    noisy, target = diffuse(latents, noise, alpha, kind)
    scaled = sampling.noise_scaling(sigma, noise.clone(), latents)
    torch.testing.assert_close(sampling.calculate_input(sigma, scaled), noisy)
    torch.testing.assert_close(sampling.calculate_denoised(sigma, target, scaled), latents, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="neither eps- nor v-prediction"):
        prediction_of(Flow())


# ---- the miniature: real CLIP, VAE and image encoder ----


@pytest.fixture(scope="module")
def bundle(host):
    """MODEL, CLIP, VAE, CLIP_VISION as a workflow's nodes make them: in inference mode."""
    from mip_adapter.miniature import comfy_bundle

    with torch.inference_mode():
        parts = comfy_bundle.load()
    assert all(each.is_inference() for each in parts[0].model.diffusion_model.parameters())
    return parts


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), 4)


def miniature_adapter(family: str, folder: Path, head: bool = True):
    from mip_adapter.research.miniature import seeded
    from mip_adapter.weights.adapter import build_adapter

    tensors = seeded.base_adapter() if family == "base" else seeded.plus_adapter()
    return build_adapter({k: v for k, v in tensors.items() if head or "text_to_weight" not in k}, f"{family} adapter")


@pytest.mark.parametrize("family", ["base", "plus"])
def test_in_the_graph(bundle, data: Path, tmp_path: Path, family: str) -> None:
    """As a node calls it, in inference mode; interrupted after two steps; saved, loaded and applied."""
    from mip_adapter.attention.reference import make_reference
    from mip_adapter.patching.apply import apply_references
    from mip_adapter.training.comfy_session import train_in_graph
    from mip_adapter.training.save import save_adapter
    from mip_adapter.training.trainable import flat_tensors
    from mip_adapter.weights.adapter import load_adapter

    model, clip, vae, vision = bundle
    adapter = miniature_adapter(family, tmp_path, head=False)
    weights = {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}

    def interrupt(progress) -> None:
        if progress.step == 2:
            raise RuntimeError("interrupted")

    recipe = small_recipe(steps=5, drop_image=0.4, drop_text=0.3, max_objects=3, batch_size=3)
    with torch.inference_mode():
        outcome = train_in_graph(model, clip, vae, vision, adapter, data, recipe, interrupt)
    assert len(outcome.losses) == 2 and str(outcome.stopped) == "interrupted"
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert not any(tensor.is_inference() for tensor in flat_tensors(outcome.adapter).values())
    loaded = load_adapter(save_adapter(outcome.adapter, tmp_path, "trained"))
    assert loaded.spec.has_head and str(loaded.spec) == str(outcome.adapter.spec)
    references = (make_reference(torch.rand(1, 64, 64, 3), "cube"), make_reference(torch.rand(1, 64, 64, 3), "ball"))
    with torch.inference_mode():
        apply_references(model, clip, vision, loaded, references, scale=0.7)


def test_samples_are_encoded_as_the_paper_does(bundle, data: Path) -> None:
    from dataclasses import replace

    from mip_adapter.training.comfy_model import HostModel
    from mip_adapter.training.dataset import SubjectFolder

    recipe = small_recipe(drop_image=0, drop_text=0, drop_both=0)
    frozen, adapter = HostModel(*bundle, recipe), miniature_adapter("base", data)
    sample = SubjectFolder(data, recipe)[0]
    long = replace(sample, caption="(a cube) " * 60)
    batch = frozen.encode([sample, replace(sample, drop_text=True, drop_image=True), long], adapter)
    assert batch.context.shape[:2] == (3, 77) and batch.latents.shape == (3, 4, 8, 8)
    assert batch.features[:2].any() and not batch.features[2:4].any()  # left out: zero embeddings
    clip, adm = bundle[1], bundle[0].model
    with torch.inference_mode():
        want, pooled = clip.encode_from_tokens(clip.tokenize(sample.caption), return_pooled=True)
        empty = clip.encode_from_tokens(clip.tokenize(""))
        sizes = [adm.embedder(torch.tensor([float(n)]))[0] for n in (160, 192, 0, sample.corner[1], 64, 64)]
    assert torch.equal(batch.context[:1], want.float()) and torch.equal(batch.context[1:2], empty.float())
    assert batch.vector is not None
    torch.testing.assert_close(batch.vector[0], torch.cat([pooled[0].float(), *sizes]))


def test_a_workflow_of_another_family_is_refused(bundle, data: Path) -> None:
    from mip_adapter.training.comfy_session import train_in_graph
    from mip_adapter.weights.adapter import load_adapter

    with pytest.raises(ValueError, match="base_ip_adapter.bin” is an adapter for .*this model is"):
        train_in_graph(*bundle, load_adapter(FOLDER / "base_ip_adapter.bin"), data, small_recipe())
