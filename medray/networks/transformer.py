"""The vision transformer over patches of 2 or 3 axes, around torchvision's encoder."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

import torch
from torch import nn
from torchvision.models.vision_transformer import Encoder

from medray.networks.layers import Head
from medray.types import NetworkIO


class PatchTransformer(nn.Module):
    """Patches -> tokens -> encoder -> logits of the class token (Dosovitskiy 2021, arXiv:2010.11929).

    Names, initial values and, on a square 2D grid, the function are those of torchvision's VisionTransformer,
    so its files of weights fit; in 3D all but the patches and positions do.
    """

    def __init__(self, io: NetworkIO, patch: int, shape: tuple[int, int, int], dropout: float) -> None:
        super().__init__()
        width, layers, heads = shape
        conv = nn.Conv3d if io.spatial_dims == 3 else nn.Conv2d
        self.conv_proj = conv(io.in_channels, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder(
            seq_length=prod(edge // patch for edge in io.size) + 1,
            num_layers=layers,
            num_heads=heads,
            hidden_dim=width,
            mlp_dim=4 * width,
            dropout=0.0,
            attention_dropout=0.0,
        )
        self.heads = nn.Sequential(OrderedDict(head=Head(width, io.outputs, dropout)))
        nn.init.trunc_normal_(self.conv_proj.weight, std=(io.in_channels * patch**io.spatial_dims) ** -0.5)
        for name in ("conv_proj.bias", "heads.head.weight", "heads.head.bias"):
            nn.init.zeros_(self.get_parameter(name))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> (B, K)."""
        tokens = self.conv_proj(image).flatten(2).transpose(1, 2)
        first = self.class_token.expand(tokens.shape[0], -1, -1)
        encoded = self.encoder(torch.cat([first, tokens], dim=1))
        logits: torch.Tensor = self.heads(encoded[:, 0])
        return logits
