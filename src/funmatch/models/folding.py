"""Folding: replaces weight standardisation by constant kernels in a frozen network."""

import torch
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def fold(net: nn.Module) -> None:
    """Replaces weight-standardised convolutions by plain ones, in place.

    The kernels are standardised once, with the arithmetic that timm repeats in every forward pass:
    in float32 the outputs are equal to the last bit.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is StdConv2d:
                setattr(parent, name, _plain(child))


def _plain(conv: StdConv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=False,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    plain.weight.copy_(_standardised(conv))
    plain.bias, plain._forward_hooks = conv.bias, conv._forward_hooks
    return plain.train(conv.training).requires_grad_(conv.weight.requires_grad)


def _standardised(conv: StdConv2d) -> Tensor:
    rows = conv.weight.reshape(1, conv.out_channels, -1)
    return F.batch_norm(rows, None, None, training=True, eps=conv.eps).reshape_as(conv.weight)
