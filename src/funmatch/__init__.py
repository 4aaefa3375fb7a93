"""Knowledge distillation by function matching (Beyer et al., CVPR 2022)."""

from funmatch.runtime import log

__version__ = "0.1.0"

log.to_console()
