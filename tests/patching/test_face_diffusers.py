"""Face adapters against diffusers' own path, on UNets with SDXL's and SD1.5's blocks: projections, predicted noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ..support import golden, graphs, small, weights_samples
from ..support.tiny_faces import Analyser, numbers, photo, seen
from ..support.weights_samples import Sample

pytestmark = pytest.mark.usefixtures("host", "_diffusers")

KINDS = ("sdxl", "sd15")
SCALE, LORA = 0.7, 0.8


@pytest.fixture(scope="module")
def _diffusers() -> None:
    """Imported late: it takes seconds, and every process of a run collects all tests."""
    pytest.importorskip("diffusers")


def model_of(kind: str) -> Any:
    """Of SDXL's class the golden UNet, since diffusers cannot build the small one."""
    return small.patcher(golden.host_unet()) if kind == "sdxl" else small.sd15()


def diffusers_unet(kind: str, model: Any) -> Any:
    """The same UNet as diffusers builds it."""
    from comfy.utils import unet_to_diffusers
    from diffusers.models.unets import unet_2d_condition

    make: Any = unet_2d_condition.UNet2DConditionModel
    common: dict[str, Any] = {"sample_size": 16, "cross_attention_dim": 48, "layers_per_block": 2}
    if kind == "sdxl":
        unet = make(
            block_out_channels=(32, 32, 64), norm_num_groups=32, transformer_layers_per_block=(1, 1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 2, 4),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=32 + 1536, **common,
        )  # fmt: skip
    else:
        unet = make(block_out_channels=(32, 32, 64, 64), attention_head_dim=4, **common)
    config = model.model.model_config.unet_config
    weights = model.model.diffusion_model.state_dict()
    names = unet_to_diffusers(config)  # more of them than the UNet has
    unet.load_state_dict({key: weights[names[key]] for key in unet.state_dict()})
    return unet.eval()


def sample_of(family: str, model: Any) -> Sample:
    from mip_adapter.weights.sites import unet_sites

    widths = tuple(site.width for site in unet_sites(model.model.diffusion_model))
    tokens = 16 if family.startswith("portrait") else 4
    encoder = small.VISION["hidden_size"] if "plus" in family else 512
    lora = 4 if family.startswith("faceid") else 0
    return Sample(family, 48, encoder, widths, tokens=tokens, dim=64, heads=1, lora=lora)


def tensors_of(family: str, model: Any) -> dict[str, Tensor]:
    seeded = torch.Generator().manual_seed(3)

    def fill(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=seeded)
        return drawn / shape[-1] ** 0.5 if len(shape) > 1 else 1 + drawn / 10

    return weights_samples.flat(sample_of(family, model), fill)


def loaded_into(unet: Any, tensors: dict[str, Tensor]) -> Any:
    """The adapter in diffusers' UNet: projection, attention processors, and the LoRA under diffusers' names for it."""
    states = [weights_samples.nested({key: tensor.clone() for key, tensor in tensors.items()})]
    loras = unet._load_ip_adapter_loras(states)
    unet._load_ip_adapter_weights(states, low_cpu_mem_usage=False)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [SCALE]
    weights = dict(unet.named_parameters())
    for key, up in loras.get(0, {}).items():
        if key.endswith(".up.weight"):
            down = loras[0][key.replace(".up.", ".down.")]
            name = key.removeprefix("unet.").removesuffix("_lora.up.weight").replace(".processor", "")
            name = name.replace("to_out", "to_out.0")
            weights[f"{name}.weight"].data += LORA * up @ down
    return unet


class Case:
    """One family on one UNet, here and there."""

    def __init__(self, family: str, kind: str, pictures: int = 1) -> None:
        import comfy.model_management
        from mip_adapter.nodes.faces import MIPFaceReference
        from mip_adapter.weights.adapter import build_adapter

        comfy.model_management.unload_all_models()  # a clone that another test sampled may have its LoRA in the weights
        self.model, self.pictures, self.pooled_text = model_of(kind), pictures, kind == "sdxl"
        tensors = tensors_of(family, self.model)
        version = "plus" if family == "faceid-plus" else "plus v2"
        self.adapter = build_adapter(tensors, "face", version)
        assert self.adapter.spec.family == family
        self.unet = loaded_into(diffusers_unet(kind, self.model), tensors)
        embeddings = [numbers(i) for i in range(pictures)]
        faces = Analyser(*[[seen(90, 100, 80, each)] for each in embeddings])
        images = torch.cat([photo() for _ in range(pictures)])
        self.chain, self.crops, _ = MIPFaceReference.execute(images, "woman", faces, 1.0, 0, structure=0.6).args
        self.face = torch.stack([torch.from_numpy(each) for each in embeddings])
        seeded = torch.Generator().manual_seed(5)
        self.x, self.context = torch.randn(1, 4, 16, 16, generator=seeded), torch.randn(1, 9, 48, generator=seeded)
        self.pooled, self.sizes = torch.randn(1, 32, generator=seeded), torch.tensor([[64.0, 64, 0, 0, 64, 64]])

    def ours(self, conditional: bool, scale: float = SCALE, lora: float = LORA) -> Tensor:
        """The predicted noise with MIP Apply."""
        from mip_adapter.nodes.apply import MIPApply

        bundle = graphs.bundle()
        y = None
        if self.pooled_text:
            timestep = self.model.model.embedder(self.sizes.flatten()).flatten().unsqueeze(0)
            y = torch.cat([self.pooled, timestep], dim=1)
        with torch.inference_mode():
            patched = MIPApply.execute(
                self.model, bundle.clip, bundle.vision, self.adapter, self.chain, scale, 0.0, 1.0,
                face_lora=lora,
            ).args[0]  # fmt: skip
            call = {**patched.model_options["transformer_options"], "cond_or_uncond": [0 if conditional else 1]}
            patched.patch_model()
            try:
                unet, time = self.model.model.diffusion_model, torch.tensor([500.0])
                return unet(self.x, time, context=self.context, y=y, transformer_options=call)
            finally:
                patched.unpatch_model()

    def theirs(self, conditional: bool) -> Tensor:
        """The predicted noise in diffusers."""
        family, (layer,) = self.adapter.spec.family, self.unet.encoder_hid_proj.image_projection_layers
        faces = self.face if family == "portrait-unnorm" else torch.nn.functional.normalize(self.face, dim=-1)
        faces = faces if family == "portrait" else faces.mean(0, keepdim=True)
        if "plus" in family:
            states = self.states(conditional)
            layer.clip_embeds, layer.shortcut, layer.shortcut_scale = (
                states.unsqueeze(1),
                family == "faceid-plusv2",
                0.6,
            )
        embeds = [(faces if conditional else torch.zeros_like(faces)).unsqueeze(0)]  # [batch, pictures, width]
        if family == "portrait-unnorm":
            embeds = [embeds[0].unsqueeze(2)]  # a sequence of one
        added = {"image_embeds": embeds, "text_embeds": self.pooled, "time_ids": self.sizes}
        with torch.inference_mode():
            return self.unet(self.x, 500, encoder_hidden_states=self.context, added_cond_kwargs=added).sample

    def states(self, conditional: bool) -> Tensor:
        vision = graphs.bundle().vision
        if conditional:
            return vision.encode_image(self.crops)["penultimate_hidden_states"].mean(0, keepdim=True).clone()
        from mip_adapter.patching.encode import null_features

        return null_features(vision, self.adapter)


FAMILIES = ("faceid", "faceid-plus", "faceid-plusv2", "portrait", "portrait-unnorm")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_predicted_noise_is_diffusers(family: str, kind: str) -> None:
    case = Case(family, kind)
    for conditional in (True, False):
        got, expected = case.ours(conditional), case.theirs(conditional)
        assert golden.relative_error(got, expected) < 1e-4
        assert golden.relative_error(case.ours(conditional, scale=0), expected) > 1e-2
        if family.startswith("faceid"):
            assert golden.relative_error(case.ours(conditional, lora=0), expected) > 1e-2


@pytest.mark.parametrize("family", ["faceid-plusv2", "portrait"])
def test_several_photographs(family: str) -> None:
    """FaceID's are averaged, a portrait adapter reads one after the other."""
    case = Case(family, "sd15", pictures=3)
    assert golden.relative_error(case.ours(True), case.theirs(True)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projection_is_diffusers(family: str) -> None:
    from mip_adapter.weights.projection import project

    case = Case(family, "sd15")
    (layer,) = case.unet.encoder_hid_proj.image_projection_layers
    faces, states = torch.randn(2, 512), torch.randn(2, 7, 40)
    for structure in (1.0, 0.3) if family == "faceid-plusv2" else (1.0,):
        if "plus" in family:
            layer.clip_embeds, layer.shortcut, layer.shortcut_scale = (
                states.unsqueeze(1),
                family == "faceid-plusv2",
                structure,
            )
            got = project(case.adapter, states, faces, structure)
        else:
            got = project(case.adapter, faces)
        with torch.no_grad():
            expected = layer(faces.unsqueeze(1) if family == "portrait-unnorm" else faces)
        assert got.shape == expected.shape and golden.relative_error(got, expected) < 1e-5
