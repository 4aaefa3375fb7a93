"""Writes the pages of the reference that follow from the configurations, when the site is built."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from funmatch import schema

CONF = Path(__file__).resolve().parents[2] / "conf"
COMMANDS = (
    "train",
    "finetune",
    "evaluate",
    "report",
    "export",
    "dashboard",
    "benchmark",
)
_ENTRY = re.compile(r"^(\w+): ?([^#]*?)(?:\s+# (.*))?$")


def on_files(files: Files, config: Any) -> Files:
    """Adds the page; called by mkdocs."""
    content = "\n".join(_page())
    files.append(File.generated(config, "reference/configuration.md", content=content))
    return files


def _page() -> Iterator[str]:
    yield "# Configuration\n"
    yield "Every value can be changed on the command line, as in `optimizer.lr=0.003`; one option "
    yield "of each group is chosen, as in `recipe=consistent`. `--cfg job` shows what came of it.\n"
    yield "## Keys of train and finetune\n"
    yield "| key | default | |\n| --- | --- | --- |"
    yield from _keys()
    yield "\n## Commands\n"
    for name in COMMANDS:
        path = CONF / f"{name}.yaml"
        yield f"### {name}\n\n{_said(path)}\n\n{_source(path)}\n"
    yield "## Groups\n"
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        yield f"### {group.name}\n"
        for path in sorted(group.rglob("*.yaml")):
            name = path.relative_to(group).with_suffix("").as_posix()
            yield f"#### {group.name}={name} {{ #{group.name}-{name.replace('/', '-')} }}\n"
            yield f"{_said(path)}\n\n{_source(path)}\n"


def _keys() -> Iterator[str]:
    """The keys that every way of teaching shares, with what base.yaml says of them."""
    said: dict[str, tuple[str, str]] = {}
    for line in (CONF / "base.yaml").read_text().splitlines():
        if found := _ENTRY.match(line):
            said[found[1]] = (found[2], found[3] or "")
    for field in fields(schema.Base):
        if field.name in said:
            default, meaning = said[field.name]
            yield f"| `{field.name}` | `{default}` | {meaning.replace('|', 'or')} |"


def _said(path: Path) -> str:
    """The comment that opens a file."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("# ") or line.startswith("# @"):
            if lines or not line.startswith("#"):
                break
            continue
        lines.append(line[2:])
    return " ".join(lines).replace("<", "&lt;").replace("[", "\\[")


def _source(path: Path) -> str:
    return f'```yaml title="{path.relative_to(CONF.parent)}"\n{path.read_text().rstrip()}\n```'
