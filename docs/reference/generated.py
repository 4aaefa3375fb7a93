"""Generates the configuration reference when the site is built."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from funmatch.config import groups, schema
from funmatch.config.groups import Option

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
    yield "of each group is chosen, as in `recipe=consistent`. `--cfg job` prints the result.\n"
    yield "## Keys of train and finetune\n"
    yield "| key | default | |\n| --- | --- | --- |"
    yield from _keys()
    yield "\n## Commands\n"
    for name in COMMANDS:
        path = CONF / f"{name}.yaml"
        yield f"### {name}\n\n{_header(path)}\n\n{_source(path)}\n"
    yield "## Groups\n"
    files = (path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/**/*.yaml"))
    options: dict[str, Option | None] = {path.as_posix(): None for path in files}
    options |= {option.path: option for option in groups.options()}
    shown = ""
    for name_in_conf, option in sorted(options.items()):
        group, _, name = name_in_conf.partition("/")
        if group != shown:
            yield f"### {group}\n"
            shown = group
        yield f"#### {group}={name} {{ #{group}-{name.replace('/', '-')} }}\n"
        path = CONF / f"{name_in_conf}.yaml"
        yield (
            f"```yaml\n{_node(option)}\n```\n"
            if option
            else f"{_header(path)}\n\n{_source(path)}\n"
        )


def _keys() -> Iterator[str]:
    """Rows of the keys that train and finetune share, with their comments in base.yaml."""
    entries: dict[str, tuple[str, str]] = {}
    for line in (CONF / "base.yaml").read_text().splitlines():
        if match := _ENTRY.match(line):
            entries[match[1]] = (match[2], match[3] or "")
    for field in fields(schema.Base):
        if field.name in entries:
            default, meaning = entries[field.name]
            yield f"| `{field.name}` | `{default}` | {meaning.replace('|', 'or')} |"


def _node(option: Option) -> str:
    """The YAML of an option that is registered from Python."""
    package = f"# @package {option.package}\n" if option.package else ""
    return package + OmegaConf.to_yaml(OmegaConf.create(option.node)).rstrip()


def _header(path: Path) -> str:
    """The comment at the top of a file."""
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
