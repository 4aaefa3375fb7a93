"""The documentation: its links, its site and the extension guide."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag

import pytest

from commands import QUICK, ROOT, command, environment

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r'```(\w+) title="([^"]+)"\n(.*?)```', re.DOTALL)
_COMMAND = re.compile(r"^python src/(\w+)\.py (--config-dir.*)$", re.MULTILINE)


@pytest.mark.slow
def test_extension_guide_commands_run_as_written(workplace: Path) -> None:
    guide = (ROOT / "docs/how-to/extend.md").read_text()
    for _, name, content in _BLOCK.findall(guide):
        path = workplace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (exports,) = re.findall(r"^export (.*)$", guide, re.MULTILINE)
    more = dict(each.split("=") for each in exports.split())
    more["PYTHONPATH"] = f"{workplace}:{ROOT / 'tests'}"
    commands = _COMMAND.findall(guide)
    assert len(commands) == 5
    for number, (script, overrides) in enumerate(commands):
        quick = ("steps=4", "schedule.warmup_steps=1", "trainer.log_every_n_steps=2")
        steps = () if "steps=" in overrides else quick
        given = [*overrides.split(), *QUICK, *steps, f"name=guide{number}"]
        done = command(script, *given, cwd=workplace, **more)
        assert (done.returncode, done.stderr) == (0, ""), overrides
        (summary,) = (workplace / "logs" / f"guide{number}").glob("*/summary.json")
        assert json.loads(summary.read_text())["status"] == "completed"
    metrics = next((workplace / "logs/guide0").glob("*/metrics.csv")).read_text()
    assert {"train/soft", "train/hard"} <= set(metrics.splitlines()[0].split(","))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target).exists(), target


class Links(HTMLParser):
    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.add(value)


def test_site_builds_without_warnings_or_broken_links(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs funmatch[docs]")
    pytest.importorskip("material", reason="needs funmatch[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=environment(tmp_path, PYTHONPATH=str(ROOT / "src"), NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    pages = {page: Links(page) for page in tmp_path.rglob("*.html") if page.name != "404.html"}
    assert len(pages) >= 15
    for page, links in pages.items():
        for link in links.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, anchor = urldefrag(link.partition("?")[0])
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{page}: {link}"
            assert not anchor or target not in pages or anchor in pages[target].ids, link
