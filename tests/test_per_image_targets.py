"""Targets that are computed once per image and stored."""

from pathlib import Path

import torch

from funmatch.targets import per_image
from funmatch.views.recipes import Fixed
from toys import TASK, array_source, network, teacher_of

CPU = torch.device("cpu")


def fixed_targets(recipe: Fixed, folder: Path, *, seed: int = 0, teacher: int = 2, source: int = 0):
    net = network(8, seed=teacher)
    targets = per_image.on_fixed_views(
        teacher_of(net),
        array_source(seed=source),
        recipe,
        TASK,
        seed=seed,
        store=folder,
        batch_size=6,
        device=CPU,
    )
    return targets, len(net.net.seen)


def fixed(crop: str, **more: object) -> Fixed:
    return Fixed(name="fixed_teacher", crop="whole", teacher_crop=crop, min_area=0.3, **more)


def test_second_run_does_not_evaluate_the_teacher(tmp_path: Path) -> None:
    first, evaluations = fixed_targets(fixed("resize"), tmp_path)
    again, evaluations_again = fixed_targets(fixed("resize"), tmp_path)
    assert evaluations == 4  # 20 images in batches of at most 6
    assert evaluations_again == 0
    assert torch.equal(first._predictions, again._predictions)
    assert not list(tmp_path.glob(".*.tmp"))


def test_other_views_images_and_teachers_are_stored_separately(tmp_path: Path) -> None:
    ensemble = fixed("inception_ensemble", ensemble=2)
    fixed_targets(fixed("resize"), tmp_path)
    for arguments in (
        {"recipe": fixed("centre")},
        {"recipe": fixed("resize"), "teacher": 3},
        {"recipe": fixed("resize"), "source": 1},
        {"recipe": ensemble},
        {"recipe": ensemble, "seed": 1},
        {"recipe": fixed("inception_ensemble", ensemble=3)},
    ):
        assert fixed_targets(folder=tmp_path, **arguments)[1] > 0
    # One view of the whole image is the same for every seed.
    assert fixed_targets(fixed("resize"), tmp_path, seed=9)[1] == 0


def test_images_are_opened_once_for_all_views(tmp_path: Path) -> None:
    """A thousand crops of a photograph are cut out of one decoded image."""
    opened: list[int] = []
    source = array_source(40)
    images = source.images
    source.images = lambda indices: (opened.extend(indices.tolist()), images(indices))[1]
    recipe = fixed("inception_ensemble", ensemble=5)
    arguments = {"seed": 0, "store": tmp_path, "batch_size": 6, "device": CPU}
    targets = per_image.on_fixed_views(
        teacher_of(network(8, seed=2)), source, recipe, TASK, **arguments
    )
    assert opened == list(range(40))
    assert targets._predictions.shape == (1, 40, 7)


def test_evaluation_predictions_are_stored(tmp_path: Path) -> None:
    net = network(8, seed=2)
    for _ in range(2):
        targets = per_image.on_evaluation_views(
            teacher_of(net), array_source(), TASK, store=tmp_path, batch_size=6, device=CPU
        )
    assert len(net.net.seen) == 4
    views = torch.cat(net.net.seen)
    # Of hundreds of pixels; other numbers of rows are summed in another order.
    expected = net.net.linear(views.flatten(1))
    torch.testing.assert_close(targets._predictions[0], expected, rtol=1e-4, atol=1e-2)
