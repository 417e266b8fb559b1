import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loading.order import RankSlice, batch_bounds, epoch_order
from tests.conftest import table_with

COUNTS = st.lists(st.lists(st.integers(1, 7), max_size=6), min_size=1, max_size=40).filter(lambda c: sum(map(len, c)) > 0)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 3), st.integers(1, 6))
def test_every_caption_comes_exactly_once_beside_its_image_at_any_k(counts: list[list[int]], epoch: int, k: int) -> None:
    table = table_with(counts)
    order = epoch_order(table, seed=1, epoch=epoch, captions_per_image=k)
    assert sorted(order.captions.tolist()) == list(range(table.captions))
    lengths = np.diff(order.offsets)
    assert lengths.min() >= 1
    assert lengths.max() <= k
    assert (table.image_rows[order.captions] == np.repeat(order.image_rows, lengths)).all()
    assert order.units == sum(-(-n // k) for shard in counts for n in shard)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    table = table_with([[5] * 20] * 5)
    first = epoch_order(table, seed=1, epoch=0)
    assert (epoch_order(table, seed=1, epoch=0).captions == first.captions).all()
    assert (epoch_order(table, seed=1, epoch=1).captions != first.captions).any()
    assert (epoch_order(table, seed=2, epoch=0).captions != first.captions).any()


def test_shards_are_visited_in_windows() -> None:
    table = table_with([[1] * 4] * 40)
    rows = epoch_order(table, seed=0, epoch=0).image_rows
    for start in (0, 64):
        assert len(set((rows[start : start + 64] // 4).tolist())) == 16


@pytest.mark.parametrize(("units", "size", "bounds"), [(6, 2, [(0, 2), (2, 4), (4, 6)]), (5, 2, [(0, 2), (2, 5)]), (1, 4, [(0, 1)]), (0, 4, [])])
def test_a_last_batch_of_one_joins_the_one_before(units: int, size: int, bounds: list[tuple[int, int]]) -> None:
    assert batch_bounds(units, size) == bounds


@given(st.integers(0, 40), st.integers(0, 200), st.integers(1, 9))
def test_parts_of_a_batch_follow_one_another_and_differ_by_one_at_most(start: int, count: int, size: int) -> None:
    parts = [RankSlice(rank=rank, size=size).of(start, start + count) for rank in range(size)]
    assert [row for first, last in parts for row in range(first, last)] == list(range(start, start + count))
    lengths = [last - first for first, last in parts]
    assert max(lengths) - min(lengths) <= 1
