"""The configuration of a run as a tree, in as few lines as it takes."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

_WIDTH = 120  # columns, without a terminal


def print_config_tree(cfg: DictConfig, title: str, choices: Mapping[str, Any]) -> None:
    """Prints the resolved configuration: a branch for each group, with its option and its values.

    Args:
        cfg: of a run.
        title: its root.
        choices: the option of each group, of Hydra.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    tree = Tree(Text(title, no_wrap=True, overflow="ignore"))
    tree.add(Text(" ".join(_pairs({k: v for k, v in plain.items() if not isinstance(v, dict)}))))
    for name, group in plain.items():
        if isinstance(group, dict) and group:
            option = choices.get(name)
            head = Text.assemble((name, "bold"), f"={option}" if option else "")
            tree.add(Text.assemble(head, "  ", " ".join(_pairs(group))))
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(tree)


def _pairs(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key=value` of all leaves, without `_target_` and `_partial_`."""
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if isinstance(value, dict):
            yield from _pairs(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_as_typed(value)}"


def _as_typed(value: Any) -> str:
    """A value as it would be typed."""
    match value:
        case list():
            return f"[{','.join(map(_as_typed, value))}]"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case _:
            return str(value)
