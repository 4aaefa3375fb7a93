"""The training stream: permutations, ranks and batches; evaluation streams."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from funmatch.data.batch import RenderedBatch
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews
from funmatch.views.recipes import Independent, Shared
from funmatch.views.stream import EpochPermutations, Share, Steps, Stream
from toys import MixedSizes, array_source, image_stream

MIXED = Shared(name="function_matching", crop="inception", mixing=True, min_area=0.3)
OWN = Independent(name="independent_noise", crop="inception", min_area=0.3)
SIDES = {"student": 8, "teacher": 6}


def stream(source, recipe=MIXED, *, rank: int = 0, ranks: int = 1, seed: int = 3, batch: int = 8):
    return image_stream(
        source, recipe, sides=SIDES, batch_size=batch, seed=seed, rank=rank, ranks=ranks
    )


def test_permutations_continue_across_epoch_boundaries() -> None:
    order = EpochPermutations(size=10, batch_size=4, seed=0)
    seen = np.concatenate([order.indices(step) for step in range(25)])  # ten epochs
    for epoch in seen.reshape(10, 10):
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in seen.reshape(10, 10)}) == 10  # each in another order


def test_permutations_do_not_depend_on_access_order() -> None:
    forward, backward = EpochPermutations(10, 4, seed=1), EpochPermutations(10, 4, seed=1)
    expected = [forward.indices(step) for step in range(12)]
    for step in reversed(range(12)):
        assert np.array_equal(backward.indices(step), expected[step])
    assert not np.array_equal(EpochPermutations(10, 4, seed=2).indices(0), expected[0])


def test_late_steps_are_drawn_in_constant_time() -> None:
    """O(1): nothing before the step is drawn, so 10^12 steps are no obstacle."""
    assert len(EpochPermutations(10, 4, seed=1).indices(10**12)) == 4
    assert stream(array_source())[10**9].views["student"].shape == (9, 3, 8, 8)


@pytest.mark.parametrize("source", [array_source(), MixedSizes()], ids=["one size", "mixed sizes"])
@pytest.mark.parametrize("recipe", [MIXED, OWN], ids=["mixed", "independent"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_share_one_global_batch(source, recipe, ranks: int) -> None:
    alone = stream(source, recipe)
    shares = [stream(source, recipe, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step in (0, 1, 7):  # 20 images, batches of 8: across borders too
        assert {share[step].coefficient for share in shares} == {alone[step].coefficient}
        whole = alone[step].mixed()
        parts = [share[step].mixed() for share in shares]
        assert torch.equal(torch.cat([p.index for p in parts]), whole.index)
        for network in SIDES:
            joined = torch.cat([p.view(network) for p in parts])
            assert torch.equal(joined, whole.view(network))
        if whole.truth is not None:
            for take in (lambda p: p.truth.label, lambda p: p.truth.partner)[: 1 + recipe.mixing]:
                assert torch.equal(torch.cat([take(p) for p in parts]), take(whole))


def test_partner_label_is_that_of_the_previous_image() -> None:
    mixed = stream(array_source())[0].mixed()
    assert torch.equal(mixed.truth.partner, mixed.truth.label.roll(1))
    assert mixed.view("student").is_floating_point()
    assert len(mixed.view("student")) == len(mixed.index) == 8


def test_networks_of_equal_side_share_one_view() -> None:
    recipe = Shared(name="consistent", crop="mild")
    batch = image_stream(
        array_source(), recipe, sides={"student": 8, "teacher": 8}, batch_size=4, seed=0
    )[0]
    # Rendered, sent by a worker, copied and mixed once.
    for same in (batch, pickle.loads(pickle.dumps(batch)), batch.to("meta"), batch.mixed()):
        assert same.views["teacher"] is same.views["student"]


def test_batch_size_must_be_divisible_by_ranks() -> None:
    with pytest.raises(ValueError, match="batch_size=8 is not divisible by 3 ranks"):
        stream(array_source(), ranks=3)


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=21 is more than the 20 images"):
        stream(array_source(), batch=21)


def test_steps_iterate_the_rest_and_have_the_total_length() -> None:
    steps = Steps(7, 10)
    assert list(steps) == [7, 8, 9]
    assert len(steps) == 10


def test_batch_to_moves_all_tensors() -> None:
    rendered = stream(array_source())[0].to("meta")
    batch = stream(array_source())[0].mixed().to("meta")
    tensors = [rendered.index, rendered.label, *rendered.views.values()]
    tensors += [batch.index, batch.truth.label, batch.truth.partner, *batch.views.values()]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_view_of_an_unknown_network_raises() -> None:
    with pytest.raises(KeyError, match="assistant"):
        stream(array_source())[0].mixed().view("assistant")


class Tokens:
    """Draws what is no image: the numbers of the examples, as a batch of one token each."""

    mixing = False

    def __len__(self) -> int:
        return 20

    def draw(self, share: Share) -> RenderedBatch:
        index = torch.from_numpy(share.index)
        views = {"student": index[:, None]}
        return RenderedBatch(
            index=index, label=None, step=share.step, first=share.first, views=views
        )


def test_stream_accepts_any_batch_drawer() -> None:
    shares = [Stream(Tokens(), batch_size=8, seed=0, rank=r, ranks=2)[3].mixed() for r in (0, 1)]
    tokens = torch.cat([share.view("student")[:, 0] for share in shares])
    assert torch.equal(tokens, torch.from_numpy(EpochPermutations(20, 8, seed=0).indices(3)))
    assert [share.first for share in shares] == [0, 4]


@pytest.mark.parametrize(("images", "ranks"), [(11, 1), (11, 2), (11, 3), (5, 4), (20, 8), (3, 3)])
def test_evaluation_visits_every_image_once(images: int, ranks: int) -> None:
    source = MixedSizes(images)
    shares = [
        EvaluationStream(EvaluationViews(source, 9, 8), batch_size=4, rank=r, ranks=ranks)
        for r in range(ranks)
    ]
    batches = list(itertools.chain(*([s[k] for k in range(len(s))] for s in shares)))
    assert all(len(share) > 0 for share in shares)
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(images))
    assert {b.views["student"].shape[1:] for b in batches} == {(3, 8, 8)}


def test_evaluation_on_fewer_images_than_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^trainer\.devices: 3 ranks share 2 evaluation images"):
        EvaluationStream(EvaluationViews(MixedSizes(2), 9, 8), batch_size=4, ranks=3)
