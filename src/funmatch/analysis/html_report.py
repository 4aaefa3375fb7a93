"""HTML report over runs: report.html, one self-contained page."""

import base64
import html
import shlex
import statistics
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from funmatch.analysis import plots, tables
from funmatch.analysis.seed_groups import SeedGroup, by_task, format_epochs
from funmatch.analysis.summaries import command
from funmatch.analysis.training_curves import calibration_error, reliability_diagrams
from funmatch.runtime import atomic_files

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 64rem; padding: 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; padding-bottom: .2rem; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { color: #444; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.wide img { max-width: none; width: 100%; min-width: 44rem; }
.note { color: #444; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
td { white-space: nowrap; }
th:nth-child(2), td:nth-child(2) { text-align: left; white-space: normal; min-width: 9rem; }
pre { background: #f3f3f3; padding: .6rem; overflow-x: auto; font-size: .85rem; }
nav ul { padding-left: 1.2rem; }
.failed { border-left: 4px solid #b00; padding-left: .8rem; }
"""
_WIDE_RATIO = 2  # of width to height
# Sections: plot, title and caption; {score} and {agreement} are titles of the task.
_FIGURES = {
    "comparison": (
        plots.comparison,
        "Recipes side by side",
        "Test {score} of the student and {agreement}; bars are the sample standard deviation over "
        "seeds, the dashed line is the teacher.",
    ),
    "learning": (
        plots.learning,
        "{Score} during training",
        "{Score} on val, mean over seeds, of the longest runs of each recipe (as in figure 3 of "
        "the paper).",
    ),
    "patience": (
        plots.patience,
        "Patience",
        "Test {score} against the length of training, on a logarithmic axis, with the teacher as "
        "a dashed line (as in figure 4 of the paper).",
    ),
    "losses": (
        plots.losses,
        "Training and validation",
        "Loss on training views, and distance to the teacher on val. A loss that falls while the "
        "distance rises means overfitting.",
    ),
    "calibration": (
        plots.calibration,
        "Calibration",
        "Accuracy against confidence on test, in 15 bins; on the diagonal a network is perfectly "
        "calibrated.",
    ),
    "times": (
        plots.times,
        "Where the time goes",
        "Seconds of a run, mean over seeds: the teacher, training the student, and the rest.",
    ),
}


def write(directory: Path, groups: Sequence[SeedGroup]) -> list[Path]:
    """Writes report.html with its figures and tables; returns the paths of all files."""
    drawn: list[Path] = []
    sections: list[str] = []
    tasks = by_task(groups)
    for index, own in enumerate(tasks):
        task, end = own[0].task, tables.suffix(index, own)
        of = f" of {task.name}" if len(tasks) > 1 else ""
        score = task.score.title
        titles = {
            "score": score,
            "Score": score[:1].upper() + score[1:],
            "agreement": task.agreement.title,
        }
        sections.append(_section(f"results{end}", f"Results{of}", _results(own)))
        for name, (draw, title, caption) in _FIGURES.items():
            path = directory / f"{name}{end}.png"
            picture = draw(own)
            atomic_files.write_or_remove(path, picture)
            if picture is None:
                continue
            drawn.append(path)
            title, caption = title.format(**titles), caption.format(**titles)
            figure = _figure(picture, f"{title}. {caption}", caption)
            sections.append(_section(f"{name}{end}", f"{title}{of}", figure))
    sections += [
        _section("views", "What the networks saw", "\n".join(_views(groups))),
        _section("failed", "Failed runs", "\n".join(_failed(groups))),
        _section("commands", "Commands to repeat each run", "\n".join(_commands(groups))),
    ]
    page = directory / "report.html"
    atomic_files.write(page, _page([text for text in sections if text]))
    return [*tables.tables(directory, groups), page, *drawn]


def _page(sections: Sequence[str]) -> str:
    titles = [
        (part.split('"')[1], part.partition("<h2>")[2].partition("</h2>")[0]) for part in sections
    ]
    contents = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in titles)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>funmatch: report</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>Distillation report</h1></header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{title}</h2>\n{body}\n</section>\n' if body else ""


def _figure(picture: bytes, alt: str, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    image = f'<img src="{source}" alt="{html.escape(alt)}">'
    width, height = struct.unpack(">II", picture[16:24])
    if width > _WIDE_RATIO * height:  # scrolled on a phone, not shrunk
        image = f'<div class="wide" tabindex="0" role="region" aria-label="figure">{image}</div>'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _results(groups: Sequence[SeedGroup]) -> str:
    task = groups[0].task
    head = (*tables.head(task), f"{task.score.title}, 95 % interval")
    rows = [[*tables.row(g), _interval(g)] for g in groups]
    caption = (
        "On test, mean ± sample standard deviation over seeds, and the confidence interval of the "
        f"mean (Student's t). {task.note}"
    )
    errors = [_error(g) for g in groups]
    if any(error is not None for error in errors):
        head = (*head, "calibration error")
        rows = [[*row, error or "–"] for row, error in zip(rows, errors, strict=True)]
        caption += " Calibration error: expected calibration error of the student."
    return _table(head, rows, caption)


def _interval(group: SeedGroup) -> str:
    interval = group.interval(group.score)
    if interval is None:
        return "–"
    bounds = zip(interval, group.task.bounds, (max, min), strict=True)
    low, high = (end if bound is None else within(end, bound) for end, bound, within in bounds)
    return f"{low:.3f} to {high:.3f}"


def _error(group: SeedGroup) -> str | None:
    errors = [calibration_error(diagram) for diagram in reliability_diagrams(group)]
    return f"{statistics.fmean(errors):.3f}" if errors else None


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<p class="note" id="note">{html.escape(caption)}</p>\n'
        '<div class="wide" tabindex="0" role="region" aria-label="table">'
        '<table aria-describedby="note">\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _views(groups: Sequence[SeedGroup]) -> Iterator[str]:
    """Figures of views.png, of one run of each recipe."""
    seen = set[str]()
    for g in groups:
        path = g.rows[0]["directory"] / "views.png"
        if g.recipe in seen or not path.is_file():
            continue
        seen.add(g.recipe)
        caption = f"{g.recipe}: the first images of the first step, seed {g.rows[0]['seed']}"
        networks = "a row of images for each network, the teacher above the student"
        yield _figure(path.read_bytes(), f"{caption}; {networks}", caption)


def _failed(groups: Sequence[SeedGroup]) -> Iterator[str]:
    for row in _each(groups):
        if row["status"] != "completed":
            reason = row.get("error") or "not finished; the same command resumes it"
            run, status = html.escape(str(row["run"])), html.escape(str(row["status"]))
            text = f"<strong>{run}</strong> ({status}): {html.escape(reason)}"
            yield f'<p class="failed">{text}</p>'


def _commands(groups: Sequence[SeedGroup]) -> Iterator[str]:
    for row in _each(groups):
        if (arguments := command(row)) is not None:
            line = shlex.join(["funmatch", *arguments])
            title = f"{row['recipe']}, {format_epochs(row['epochs'])} epochs, seed {row['seed']}"
            title = html.escape(title)
            yield f"<details><summary>{title}</summary><pre>{html.escape(line)}</pre></details>"


def _each(groups: Iterable[SeedGroup]) -> Iterator[dict[str, Any]]:
    for g in groups:
        yield from g.rows
