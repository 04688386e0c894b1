"""Stage unaided, aside from the others: the base forgets where its words' objects are, and learns it again by itself.

`places` taught the shipped base its words' places, and the pool of all sites should matter most where nobody did. So
the queries and keys of every cross-attention, which decide where a word acts, are drawn anew. Then all of the
cross-attentions are trained with the base's own loss alone. The rest of the UNet stays as it is.
"""

import torch
from torch import nn

from .base import Base


class Unaided(Base):
    name, rate, total, stop, ema_decay = "unaided", 4e-4, 240, 240, 0.99
    matrix_rate = 4e-3
    batch_size = 128


def forget(unet: nn.Module) -> nn.Module:
    """Draw the queries and keys of the cross-attentions anew, by seed 0, and let only the cross-attentions learn."""
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, module in unet.named_modules():
            if name.endswith(("attn2.to_q", "attn2.to_k")) and isinstance(module, nn.Linear):
                nn.Linear.reset_parameters(module)
            if name.endswith(".attn2"):
                module.requires_grad_(True)
    return unet
