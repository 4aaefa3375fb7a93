"""Training curves and reliability diagrams, from metrics.csv and predictions.csv of runs."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from funmatch.analysis.seed_groups import SeedGroup

_CONFIDENCE_BINS = 15
_CURVE_POINTS = 200
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def mean_curve(group: SeedGroup, column: str) -> Curve | None:
    """The mean over seeds of a column of metrics.csv, against epochs; None without data."""
    curves = []
    for row in group.completed or group.rows:  # an unfinished run would shorten the curve
        points = [
            (int(line["step"]), float(line[column]))
            for line in _read(row["directory"] / "metrics.csv")
            if line.get(column)
        ]
        if len(points) > 1:
            steps, values = np.array(points, dtype=float).T
            curves.append((steps * row["epochs"] / row["steps"], values))
    if not curves:
        return None
    last = min(epochs[-1] for epochs, _ in curves)
    epochs = np.linspace(max(e[0] for e, _ in curves), last, _CURVE_POINTS)
    return epochs, np.mean([np.interp(epochs, *curve) for curve in curves], axis=0)


def reliability_diagram(directory: Path) -> NDArray[np.float64] | None:
    """Sums over the images of each confidence bin: [3, 15].

    The rows are confidence, correct predictions and images. None without labels or confidences.
    """
    rows = [row for row in _read(directory / "predictions.csv") if row["label"] and row["student"]]
    if not rows or "student_confidence" not in rows[0]:
        return None
    confidence = np.array([float(row["student_confidence"]) for row in rows])
    correct = np.array([row["student"] == row["label"] for row in rows], dtype=float)
    bins = np.minimum((confidence * _CONFIDENCE_BINS).astype(int), _CONFIDENCE_BINS - 1)
    sums = (np.bincount(bins, weights, _CONFIDENCE_BINS) for weights in (confidence, correct, None))
    return np.stack([s.astype(float) for s in sums])


def reliability_diagrams(group: SeedGroup) -> list[NDArray[np.float64]]:
    """Reliability diagrams of the completed runs of a group with labels and confidences."""
    diagrams = (reliability_diagram(row["directory"]) for row in group.completed)
    return [diagram for diagram in diagrams if diagram is not None]


def calibration_error(diagram: NDArray[np.float64]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, over images."""
    confidence, correct, count = diagram
    return float(np.abs(confidence - correct).sum() / count.sum())


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
