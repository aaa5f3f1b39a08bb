"""Parts of dense families that MONAI and torchvision do not give as medray needs them."""

from __future__ import annotations

import torch
from monai.networks.blocks.activation import MemoryEfficientSwish
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetResBlock, UnetUpBlock
from monai.networks.nets.vnet import InputTransition
from torch import nn

from medray.networks.layers import SamePad
from medray.types import NetworkIO

Edges = tuple[tuple[int, ...], ...]


class DynamicUNet(nn.Module):
    """The U-Net of nnU-Net, of MONAI's blocks: kernel and stride are chosen per level and axis.

    Names, initial values and, in evaluation, the function are those of MONAI's DynUNet without its second copy of
    every weight (`skip_layers`). In training MONAI stretches all heads to the full grid and stacks them; here they
    stay as coarse as they are.
    """

    def __init__(
        self,
        io: NetworkIO,
        levels: tuple[tuple[int, ...], Edges, Edges],
        norm: tuple[str, dict[str, object]],
        residual: bool,
        heads: int,
        dropout: float | None,
    ) -> None:
        """`levels` are filters, kernels and strides, finest first; `heads` are further answers, coarser and coarser."""
        super().__init__()
        filters, kernels, strides = levels
        dims, last = io.spatial_dims, len(filters) - 1
        block = UnetResBlock if residual else UnetBasicBlock
        inputs = (io.in_channels, *filters)
        down = [
            block(dims, inputs[level], filters[level], kernels[level], strides[level], norm, dropout=dropout)
            for level in range(last + 1)
        ]
        up = [
            UnetUpBlock(dims, filters[level], filters[level - 1], *shape, norm, dropout=dropout)
            for level in range(last, 0, -1)
            for shape in [(kernels[level], strides[level], strides[level])]
        ]
        self.input_block = down[0]
        self.downsamples = nn.ModuleList(down[1:last])
        self.bottleneck = down[last]
        self.upsamples = nn.ModuleList(up)
        self.output_block = UnetOutBlock(dims, filters[0], io.outputs)
        if heads:
            coarser = [UnetOutBlock(dims, filters[level], io.outputs) for level in range(1, heads + 1)]
            self.deep_supervision_heads = nn.ModuleList(coarser)
        self.heads = heads
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(part.weight, a=0.01)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(B, C, *S) -> (B, K, *S); with further heads in training a list: that, then coarser and coarser."""
        skips = [self.input_block(image)]
        for block in self.downsamples:
            skips.append(block(skips[-1]))
        features = self.bottleneck(skips[-1])
        supervised: list[torch.Tensor] = []
        for block in self.upsamples:
            features = block(features, skips.pop())
            level = len(skips)
            if self.training and 1 <= level <= self.heads:
                supervised.insert(0, self.deep_supervision_heads[level - 1](features))
        logits: torch.Tensor = self.output_block(features)
        return [logits, *supervised] if self.training and self.heads else logits


class AnyInput(InputTransition):  # type: ignore[misc]
    """V-Net's first block for any number of channels: they are repeated in turn up to its width, and cut there."""

    def __init__(self, spatial_dims: int, in_channels: int, width: int, act: tuple[str, dict[str, object]]) -> None:
        super().__init__(spatial_dims, 1, width, act)
        conv = self.conv_block.conv
        make = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.conv_block.conv = make(in_channels, width, conv.kernel_size, padding=conv.padding, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *S) -> (B, width, *S)."""
        convolved = self.conv_block(x)
        if x.shape[1] > 1:
            x = x.index_select(1, torch.arange(self.out_channels, device=x.device) % x.shape[1])
        features: torch.Tensor = self.act_function(convolved + x)
        return features


def take_any_grid(efficientnet: nn.Module) -> None:
    """Make a MONAI EfficientNet pad for the grid that comes, and swish as torch does.

    Its own padding is right for one cube of 224 to 600 voxels and fails on small or oblong grids; its own swish
    cannot be exported.
    """
    for part in list(efficientnet.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Conv2d | nn.Conv3d) and hasattr(part, f"{name}_padding"):
                setattr(part, f"{name}_padding", SamePad(child.kernel_size, child.stride))
            elif isinstance(child, MemoryEfficientSwish):
                setattr(part, name, nn.SiLU())
