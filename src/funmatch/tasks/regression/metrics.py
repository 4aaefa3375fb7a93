"""Metrics of a regressor: mean absolute error, R², and distance to its teacher."""

from torch import Tensor

from funmatch.tasks.metrics import MeanMetrics

_SUMS = (
    *("student_mae", "teacher_mae", "student_mse", "teacher_mse"),
    *("mse_to_teacher", "label", "label_square"),
)


class RegressionMetrics(MeanMetrics):
    """MAE, R² and root-mean-square distance, over all examples and outputs.

    MAE and the distance are in the units of the labels. R² is the explained share of the variance
    of the labels; it is omitted if the labels are constant.
    """

    def __init__(self) -> None:
        super().__init__(_SUMS)

    def values(
        self, student: Tensor, teacher: Tensor | None, label: Tensor | None
    ) -> dict[str, Tensor]:
        """Args: predictions [B, D] of student and teacher, labels [B] or [B, D]."""
        values: dict[str, Tensor] = {}
        if label is not None:
            truth = label.reshape(student.shape)
            values |= {"label": truth.mean(1), "label_square": truth.square().mean(1)}
            networks = {"student": student, "teacher": teacher}
            for name, prediction in networks.items():
                if prediction is not None:
                    error = prediction.float() - truth
                    values[f"{name}_mae"] = error.abs().mean(1)
                    values[f"{name}_mse"] = error.square().mean(1)
        if teacher is not None:
            values["mse_to_teacher"] = (student - teacher).float().square().mean(1)
        return values

    def compute(self) -> dict[str, Tensor]:
        """MAE and R² of student and teacher, and `rmse_to_teacher`, by name."""
        means = super().compute()
        metrics: dict[str, Tensor] = {}
        for name in ("student_mae", "teacher_mae"):
            if name in means:
                metrics[name] = means[name]
        if "label" in means and (variance := means["label_square"] - means["label"] ** 2) > 0:
            for name in ("student", "teacher"):
                if f"{name}_mse" in means:
                    metrics[f"{name}_r2"] = 1 - means[f"{name}_mse"] / variance
        if "mse_to_teacher" in means:
            metrics["rmse_to_teacher"] = means["mse_to_teacher"].sqrt()
        return metrics
