"""Stratified splits, and the stored split of SUN397."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

import trees
from commands import ROOT
from funmatch.data.datasets import stratified_split, torchvision_layouts
from funmatch.data.file_list import DatasetFiles, FileList, images_below
from trees import plant, refused


def parts(listings: DatasetFiles) -> list[FileList]:
    return [listings.train, listings.val, listings.test]


@pytest.mark.parametrize(
    ("total", "classes", "shares", "sizes"),
    [
        (3680, 37, (0.1,), (3312, 368)),
        (75_750, 101, (0.1,), (68_175, 7575)),
        pytest.param(*(1_281_167, 1000, (0.02,), (1_255_544, 25_623)), marks=pytest.mark.slow),
        (108_753, 397, (0.1, 0.2), (76_128, 10_875, 21_750)),
        (100, 7, (0.29,), (71, 29)),
    ],
)
def test_split_has_the_papers_sizes_and_is_stratified(
    total: int, classes: int, shares: tuple[float, ...], sizes: tuple[int, ...]
) -> None:
    labels = np.sort(np.random.default_rng(0).integers(0, classes, total))
    names = tuple(f"{label}/{i}" for i, label in enumerate(labels))
    split_lists = stratified_split.split(FileList(Path(), names, labels), *shares)
    assert tuple(map(len, split_lists)) == sizes
    assert len(set().union(*(part.names for part in split_lists))) == total
    counts = np.bincount(labels)
    for part, share in zip(split_lists[1:], shares, strict=True):
        assert np.abs(np.bincount(part.labels, minlength=classes) - share * counts).max() < 2


def test_split_does_not_depend_on_the_order_of_names() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 200)
    names = [f"{i}.jpg" for i in range(200)]

    def split(order, seed: int = 0) -> list[set[str]]:
        indices = stratified_split.stratified(
            [names[i] for i in order], labels[order], [20, 31], seed=seed
        )
        return [{names[order[i]] for i in part} for part in indices]

    assert split(np.arange(200)) == split(rng.permutation(200))
    assert split(np.arange(200)) != split(np.arange(200), seed=1)


def test_split_orders_images_by_the_hash_of_their_names() -> None:
    """Written from the rule: not one image may change sides, or runs cannot be compared."""
    names = [f"{i}.jpg" for i in range(12)]
    parts = stratified_split.stratified(names, np.arange(12) % 3, [3, 6])
    expected: list[list[int]] = [[], [], []]
    for label in range(3):
        queue = sorted(
            range(label, 12, 3), key=lambda i: hashlib.sha256(f"0/{names[i]}".encode()).hexdigest()
        )
        for part, images in zip(expected, (queue[3:], queue[:1], queue[1:3]), strict=True):
            part.extend(images)
    assert [part.tolist() for part in parts] == [sorted(part) for part in expected]


def test_split_leaves_each_class_a_training_image_if_possible() -> None:
    labels = np.repeat(np.arange(10), 2)
    names = [str(i) for i in range(20)]
    train, val, test = stratified_split.stratified(names, labels, [6, 4])
    assert sorted(labels[train]) == list(range(10))
    assert (len(val), len(test)) == (6, 4)
    (train, everything) = stratified_split.stratified(names, labels, [20])
    assert len(train) == 0
    assert len(everything) == 20
    with pytest.raises(ValueError, match=r"parts of \[15, 6\] images do not fit into 20"):
        stratified_split.stratified(names, labels, [15, 6])


def test_stored_sun397_split_has_the_papers_sizes() -> None:
    letters = "".join(part.letters for part in stratified_split.stored("sun397").values())
    assert [letters.count(letter) for letter in "tve"] == [76_128, 10_875, 21_750]
    assert len(stratified_split.stored("sun397")) == 397


BIOLOGY = (ROOT / "tests" / "sun397_biology_laboratory.txt").read_text().splitlines()


def test_stored_sun397_class_matches_only_its_official_names() -> None:
    part = stratified_split.stored("sun397")["b/biology_laboratory"]
    assert part.fits(BIOLOGY)
    assert not part.fits(BIOLOGY[:-1])
    assert not part.fits([*BIOLOGY[:-1], "b/biology_laboratory/sun_zzzzzzzzzzzzzzzz.jpg"])


def test_incomplete_sun397_is_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, "sun397")
    for name in BIOLOGY:
        trees.photograph(root / "SUN397" / name)
    with (root / "SUN397/ClassName.txt").open("a") as file:
        file.write("/b/biology_laboratory\n")
    line = refused(lambda: torchvision_layouts.sun397(root))
    assert line.startswith(f"root={root}: SUN397 is incomplete: 1 of its 397 classes are complete")
    assert "a/abbey has 10 images, not the 484 of the official list" in line


def test_complete_sun397_uses_the_stored_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path, "sun397")
    official: dict[str, stratified_split.Stored] = {}
    for label in ("a/abbey", "b/bar", "c/church/outdoor"):
        names = [f"{label}/{name}" for name in images_below(root / "SUN397" / label)]
        official[label] = stratified_split.Stored(
            stratified_split.class_digest(names), "tvettttttt"
        )
    monkeypatch.setattr(stratified_split, "stored", {"sun397": official}.__getitem__)
    # In the true archive, but in no part.
    trees.photograph(root / "SUN397/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg")
    files = torchvision_layouts.sun397(root)
    assert tuple(map(len, parts(files))) == (24, 3, 3)
    assert files.val.names[0] == "SUN397/a/abbey/sun_mine1.jpg"
    assert files.test.names[2] == "SUN397/c/church/outdoor/sun_mine2.jpg"
    (root / "SUN397/b/bar/sun_mine4.jpg").unlink()
    assert "b/bar has 9 images, not the 10" in refused(lambda: torchvision_layouts.sun397(root))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "a/abbey",
            "1 of the 3 classes in SUN397/ClassName.txt have no images, first SUN397/a/abbey",
        )
    ],
)
def test_sun397_with_missing_or_unknown_class_is_refused(
    file: str, message: str, tmp_path: Path
) -> None:
    root = plant(tmp_path, "sun397")
    (root / "SUN397" / file).rename(root / "gone")
    assert message in refused(lambda: torchvision_layouts.sun397(root))
    trees.photograph(root / "SUN397/z/zoo/sun_mine.jpg")
    assert "the class of SUN397/z/zoo/sun_mine.jpg is not" in refused(
        lambda: torchvision_layouts.sun397(root)
    )
