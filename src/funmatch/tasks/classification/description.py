"""Names of the figures of classification; imports no torch."""

from funmatch.tasks.description import Figure, TaskDescription

DESCRIPTION = TaskDescription(
    name="classification",
    model="image classifier",
    score=Figure("student_top1", "accuracy", "max"),
    agreement=Figure("agreement_top1", "agreement with the teacher", "max"),
    distance=Figure("kl_to_teacher", "KL to teacher", "min"),
    columns=(
        "student_val_top1",
        "student_test_top1",
        "teacher_test_top1",
        "agreement_top1",
        "agreement_top5",
        "kl_to_teacher",
    ),
    table={
        "accuracy": "student_test_top1",
        "agreement": "agreement_top1",
        "KL": "kl_to_teacher",
        "teacher": "teacher_test_top1",
    },
    note=(
        "Accuracy of the student and of its teacher and their agreement are fractions; KL to the "
        "teacher is in nats at T = 1."
    ),
    bounds=(0.0, 1.0),
    pipeline_tag="image-classification",
)
