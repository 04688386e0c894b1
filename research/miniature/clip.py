"""CLIP's text and image models in plain torch, under ComfyUI's parameter names.

ComfyUI's own cannot be trained: they add in place what the backward pass still needs. These give the same numbers (a
test compares them), so the trained weights load into ComfyUI's classes unchanged.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}
VOCABULARY, LENGTH = 49408, 77
END = 49407
PAD_L, PAD_G = END, 0  # padding token of each of SDXL's two text encoders
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # on a CPU this trains far faster than the fused kernel
        if causal:
            ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(ahead, float("-inf"))
        out = scores.softmax(-1).to(v) @ v
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, activation: str):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, settings: Mapping):
        super().__init__()
        width = settings["hidden_size"]
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = Attention(width, settings["num_attention_heads"])
        self.mlp = Mlp(width, settings["intermediate_size"], settings["hidden_act"])

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, settings: Mapping, causal: bool):
        super().__init__()
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings["num_hidden_layers"]))
        self.causal = causal

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last and the penultimate hidden states."""
        before = x
        for layer in self.layers:
            before, x = x, layer(x, self.causal)
        return x, before


class TextEmbeddings(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position_embedding = nn.Embedding(LENGTH, width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTransformer(nn.Module):
    def __init__(self, settings: Mapping):
        super().__init__()
        width = settings["hidden_size"]
        self.embeddings = TextEmbeddings(width)
        self.encoder = Encoder(settings, causal=True)
        self.final_layer_norm = nn.LayerNorm(width)


class Text(nn.Module):
    """Token ids [B, L ≤ 77] to penultimate hidden states [B, L, C] and the projected text [B, C]."""

    def __init__(self, settings: Mapping):
        super().__init__()
        width = settings["hidden_size"]
        self.text_model = TextTransformer(settings)
        self.text_projection = nn.Linear(width, width, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        model = self.text_model
        last, penultimate = model.encoder(model.embeddings(ids))
        end = (ids == END).int().argmax(1)  # the first end token
        pooled = model.final_layer_norm(last[torch.arange(len(ids), device=ids.device), end])
        return penultimate, self.text_projection(pooled)


class VisionEmbeddings(nn.Module):
    def __init__(self, settings: Mapping):
        super().__init__()
        width, patch = settings["hidden_size"], settings["patch_size"]
        patches = (settings["image_size"] // patch) ** 2
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(patches + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches).expand(len(patches), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    def __init__(self, settings: Mapping):
        super().__init__()
        width = settings["hidden_size"]
        self.embeddings = VisionEmbeddings(settings)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.encoder = Encoder(settings, causal=False)


class Vision(nn.Module):
    """Normalised pixels [B, 3, S, S] to penultimate hidden states [B, P, C] and image embeddings [B, D]."""

    def __init__(self, settings: Mapping):
        super().__init__()
        self.vision_model = VisionTransformer(settings)
        self.visual_projection = nn.Linear(settings["hidden_size"], settings["projection_dim"], bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        penultimate, pooled = self.hidden(pixels)
        return penultimate, self.visual_projection(pooled)

    def hidden(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate hidden states, and the pooled state before the projection."""
        model = self.vision_model
        last, penultimate = model.encoder(model.pre_layrnorm(model.embeddings(pixels)))
        return penultimate, model.post_layernorm(last[:, 0])


def normalised(images: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in 0..1, normalised for the image model."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    return (images - mean) / std
