"""The HTML report, predictions, calibration error, mean curves and example views."""

import base64
import csv
import io
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassCalibrationError

from commands import QUICK, command, command_here
from funmatch.analysis import summaries
from funmatch.analysis.seed_groups import group_runs
from funmatch.analysis.training_curves import calibration_error, mean_curve, reliability_diagram
from funmatch.core.render import render_view
from funmatch.runs.directory import Run
from funmatch.tasks.classification.predictions import COLUMNS, ClassPredictions
from funmatch.views.example_views import contact_sheet, example_views
from funmatch.views.recipes import Fixed, Independent, Shared
from toys import array_source, image_stream

SETTINGS = (
    *QUICK,
    *(
        "name=reported",
        "schedule.warmup_steps=2",
        "validate_every=5",
        "trainer.log_every_n_steps=2",
    ),
)


class Page(HTMLParser):
    """The parts of a page that somebody may miss."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text, self._open = "", list[str]()
        self.feed(path.read_text())
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs) -> None:
        given = dict(attrs)
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        self.images += [given] if tag == "img" else []
        self.links += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        assert "src" not in given or given["src"].startswith("data:image/png;base64,")

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


@pytest.fixture(scope="module")
def logs(workplace: Path) -> Path:
    recipes = "recipe=fixed_teacher,independent_noise,function_matching"
    done = command("train", "-m", recipes, "steps=10,20", "seed=0,1", *SETTINGS, cwd=workplace)
    assert done.returncode == 0, done.stderr
    failing = ("recipe=consistent", "steps=10", "optimizer.lr=1e30", "max_skipped=0")
    assert command("train", *failing, *SETTINGS, cwd=workplace).returncode == 1
    return workplace / "logs" / "reported"


@pytest.fixture(scope="module")
def page(logs: Path) -> Page:
    code, out, err = command_here("report", f"runs={logs}", cwd=logs)
    assert (code, err) == (0, "")
    assert "report.html, comparison.png, learning.png, patience.png, losses.png, calib" in out
    return Page(logs / "report.html")


def test_report_embeds_every_image_with_alt_text(logs: Path, page: Page) -> None:
    assert len(page.images) == 6 + 4  # figures, and the views of four recipes
    for given in page.images:
        assert len(given["alt"]) > 40
        content = base64.b64decode(given["src"].partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert pixels.std() > 5  # no empty panel
    for name in ("comparison", "learning", "patience", "losses", "calibration", "times"):
        assert (logs / f"{name}.png").is_file()


def test_report_links_lead_to_anchors(page: Page) -> None:
    assert len(page.links) >= 8
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def test_report_contains_figures_and_failures_of_the_runs(logs: Path, page: Page) -> None:
    for group in group_runs([logs]):
        if group.completed:
            assert group.text("student_test_top1", "{:.3f}") in page.text
            low, high = group.interval("student_test_top1")
            mean, half = group.mean("student_test_top1"), group.deviation("student_test_top1")
            # Student's t for two seeds is 12.706.
            assert high - mean == pytest.approx(12.706 * half / np.sqrt(2), rel=1e-3)
            assert low == pytest.approx(2 * mean - high)
    (failed,) = (row for g in group_runs([logs]) for row in g.rows if row["status"] == "failed")
    assert f"{failed['run']} (failed): {failed['error']}" in page.text
    assert "max_skipped=0" in failed["error"]


def test_report_commands_repeat_the_runs(logs: Path, page: Page) -> None:
    assert page.text.count("funmatch train ") == 13
    row = next(row for g in group_runs([logs]) for row in g.rows if row["status"] == "completed")
    script, *overrides = summaries.command(row)
    assert shlex.join(["funmatch", script, *overrides]) in page.text
    code, out, err = command_here(script, *overrides, cwd=logs.parents[1])
    assert (code, err) == (0, "")
    assert f"{row['run']}\n" in out
    assert "finished before" in out


def test_report_omits_plots_without_data(workplace: Path) -> None:
    logs = workplace / "logs" / "first"  # of one length, with no validation in between
    assert command_here("report", f"runs={logs}", cwd=workplace)[0] == 0
    page = Page(logs / "report.html")
    assert not (logs / "patience.png").exists()
    assert not any("against the length" in given["alt"] for given in page.images)


def test_predictions_csv_agrees_with_the_summary(logs: Path) -> None:
    row = next(row for g in group_runs([logs]) for row in g.rows if row["status"] == "completed")
    with Run(row["directory"]).predictions.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(each["image"]) for each in rows] == list(range(360))
    right = np.mean([each["student"] == each["label"] for each in rows])
    assert right == pytest.approx(row["student_test_top1"])
    agreed = np.mean([each["student"] == each["teacher"] for each in rows])
    assert agreed == pytest.approx(row["agreement_top1"])


def test_predictions_table_is_in_image_order() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, generator=generator)
    label, predictions = torch.tensor([0, 1, 2, 3, 0]), ClassPredictions()
    for rows in ([3, 1], [4, 0, 2]):
        predictions.update(torch.tensor(rows), student[rows], teacher[rows], label[rows])
    lines = predictions.table(predictions.compute()).splitlines()
    assert lines[0] == ",".join(COLUMNS)
    for number, line in enumerate(lines[1:]):
        both = [
            (z.softmax(0).argmax(), z.softmax(0).max()) for z in (student[number], teacher[number])
        ]
        cells = ",".join(f"{best},{share:.6f}" for best, share in both)
        assert line == f"{number},{label[number]},{cells}"
    nothing = ClassPredictions()
    nothing.update(torch.tensor([0]), student[:1], None, None)
    assert nothing.table(nothing.compute()).splitlines()[1].endswith(",,")


def test_calibration_error_equals_torchmetrics(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(500, 6, generator=generator)
    label = torch.randint(0, 6, (500,), generator=generator)
    predictions = ClassPredictions()
    predictions.update(torch.arange(500), logits, None, label)
    (tmp_path / "predictions.csv").write_text(predictions.table(predictions.compute()))
    expected = MulticlassCalibrationError(6, n_bins=15, norm="l1")(logits.softmax(1), label)
    assert calibration_error(reliability_diagram(tmp_path)) == pytest.approx(
        float(expected), abs=1e-5
    )


def test_mean_curve_is_the_mean_over_seeds(logs: Path) -> None:
    group = next(
        g for g in group_runs([logs]) if g.recipe == "function_matching" and g.epochs == 20
    )
    epochs, values = mean_curve(group, "val/student_top1")
    assert (epochs[0], epochs[-1]) == (5, 20)
    last = []
    for row in group.rows:
        with (row["directory"] / "metrics.csv").open() as file:
            last.append(
                [
                    float(r["val/student_top1"])
                    for r in csv.DictReader(file)
                    if r["val/student_top1"]
                ][-1]
            )
    assert values[-1] == pytest.approx(np.mean(last))


@pytest.mark.parametrize(
    "recipe",
    [
        Shared(name="function_matching", crop="inception", mixing=True, min_area=0.3),
        Independent(name="independent_noise", crop="mild", mild=(10, 8)),
        Fixed(name="fixed_teacher", teacher_crop="centre", mild=(10, 8)),
    ],
    ids=lambda recipe: recipe.name,
)
def test_example_views_equal_the_views_of_training(recipe) -> None:
    source, sides = array_source(30), {"student": 8, "teacher": 10}
    given = {"batch_size": 12, "seed": 3}
    examples = example_views(source, recipe, sides=sides, **given, step=5, number=4)
    batch = image_stream(source, recipe, sides=sides, **given)[5].mixed()
    assert list(examples) == ["teacher", "student"]
    expected = {name: batch.view(name)[:4] for name in examples}
    if isinstance(recipe, Fixed):
        index = batch.index[:4].numpy()
        view = next(iter(recipe.teacher_views(3, *source.sizes(index))))
        expected["teacher"] = render_view(source.images(index), view, 10)
    for name, views in expected.items():
        assert examples[name].dtype == torch.uint8
        assert torch.equal(examples[name], views.round().clamp(0, 255).to(torch.uint8))
    shown = Image.open(io.BytesIO(contact_sheet(examples)))
    assert shown.width >= 4 * 64
    assert shown.height >= 2 * 64
