"""Mixup for function matching: one coefficient and one set of partners for both networks.

Source: Zhang et al. 2018; Beyer et al. 2022, sec. 3.2 and the released code.
"""

import numpy as np
import torch
from torch import Tensor


def folded_uniform(rng: np.random.Generator) -> float:
    """Mixing coefficient in [1/2, 1]: a ~ U(0, 1), folded to max(a, 1 - a)."""
    draw = rng.random()
    return float(max(draw, 1.0 - draw))


def folded_beta(rng: np.random.Generator, alpha: float) -> float:
    """Mixing coefficient in [1/2, 1]: a ~ Beta(alpha, alpha), folded to max(a, 1 - a).

    Args:
        rng: source of the draw.
        alpha: positive; 1 is uniform, as in function matching; 0.1, as in fine-tuning of BiT
            models, leaves most images nearly unchanged.

    Raises:
        ValueError: alpha is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if alpha == 1:
        return folded_uniform(rng)
    draw = rng.beta(alpha, alpha)
    return float(max(draw, 1.0 - draw))


def mix(images: Tensor, coefficient: float) -> Tensor:
    """Mixes every image with the previous one, and the first with the last.

    Args:
        images: [B, ...]; integers are converted to float32.
        coefficient: weight of the image itself; its partner has 1 - coefficient.

    Returns:
        coefficient * images + (1 - coefficient) * roll(images, 1), [B, ...], floating point.
    """
    images = images if images.is_floating_point() else images.float()
    # A roll, not a reversal: reversed, an odd batch would mix its middle image with itself.
    return coefficient * images + (1.0 - coefficient) * torch.roll(images, 1, dims=0)
