"""Names of the figures of regression; imports no torch."""

from funmatch.tasks.description import Figure, TaskDescription

DESCRIPTION = TaskDescription(
    name="regression",
    model="image regressor",
    score=Figure("student_mae", "MAE", "min"),
    agreement=Figure("rmse_to_teacher", "RMSE to the teacher", "min"),
    distance=Figure("rmse_to_teacher", "RMSE to the teacher", "min"),
    columns=(
        "student_val_mae",
        "student_test_mae",
        "teacher_test_mae",
        "student_test_r2",
        "teacher_test_r2",
        "rmse_to_teacher",
    ),
    table={
        "MAE": "student_test_mae",
        "R²": "student_test_r2",
        "RMSE": "rmse_to_teacher",
        "teacher": "teacher_test_mae",
    },
    note=(
        "MAE of the student and of its teacher and RMSE from student to teacher are in the units "
        "of the labels; less is better. R² is a fraction."
    ),
    bounds=(0.0, None),
)
