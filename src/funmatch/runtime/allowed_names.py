"""The functions and classes that a configuration may name, for each of its keys.

A new objective, data set, network, callback or logger of funmatch needs a line here.
"""

from dataclasses import dataclass

BY_PATH = "funmatch.models.user_models.from_path"  # calls the function that its `path` names
LAYERS = "torch.nn"  # whose classes may be arguments anywhere


@dataclass(frozen=True)
class Rule:
    """What may be called at one kind of key.

    Attributes:
        key: pattern of the node's key.
        names: of ours, in full.
        classes: packages whose public classes may be called.
        functions: modules whose public functions may be called.
    """

    key: str
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


def _in(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"funmatch.{module}.{name}" for name in names)


RULES = (
    Rule(
        r"(data|transfer\.[^.]+)\.splits",
        (
            *_in("data.datasets.builders", "flowers102", "pets", "food101", "sun397"),
            *_in("data.datasets.builders", "imagenet", "folder"),
            *_in("data.datasets.digits", "digits", "ink"),
        ),
    ),
    Rule(
        r"(data|transfer\.[^.]+)\.task",
        (
            *_in("tasks.classification.task", "Classification"),
            *_in("tasks.regression.task", "Regression"),
        ),
    ),
    Rule(
        r"(student|model|teacher(\.members\.[^.]+)?)\.net",
        (
            *_in("models.bit", "build"),
            *_in("models.conv", "build"),
            *_in("models.timm_models", "build"),
            *_in("models.exported", "ExportedModel"),
            BY_PATH,
        ),
        classes=(LAYERS,),
        functions=("torchvision.models",),
    ),
    Rule(
        r"objective",
        (
            *_in("objectives.function_matching", "FunctionMatching"),
            *_in("objectives.mse", "SquaredError"),
        ),
    ),
    Rule(
        r"optimizer",
        (*_in("optim.adam", "adam"), *_in("optim.sgd", "sgd"), *_in("optim.shampoo", "shampoo")),
        classes=("torch.optim",),
    ),
    Rule(
        r"schedule",
        _in("optim.schedules", "warmup_cosine", "warmup_quadratic", "warmup_staircase"),
    ),
    Rule(r"recipe", _in("views.recipes", "Shared", "Independent", "Fixed")),
    Rule(
        r"callbacks\.[^.]+",
        _in("training.callbacks.progress", "ProgressBar", "ProgressLog"),
        classes=("lightning.pytorch.callbacks",),
    ),
    Rule(
        r"logger\.[^.]+",
        (
            *_in("training.loggers.mlflow", "start"),
            *_in("training.loggers.tensorboard", "start"),
            *_in("training.loggers.wandb", "start"),
        ),
        classes=("lightning.pytorch.loggers",),
    ),
    Rule(r"trainer", ("lightning.Trainer",)),
    Rule(r"trainer\.strategy", classes=("lightning.pytorch.strategies",)),
    Rule(r"trainer\.profiler", classes=("lightning.pytorch.profilers",)),
)
