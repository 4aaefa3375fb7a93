"""Knowledge distillation by function matching (Beyer et al., CVPR 2022)."""

__version__ = "0.1.0"
