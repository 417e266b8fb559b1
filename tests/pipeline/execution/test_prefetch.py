import threading
from collections.abc import Iterator

import pytest

from pipeline.execution.prefetch import map_ahead

SECONDS = 10.0


def counted(taken: list[int], count: int) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    assert list(map_ahead(lambda item: item * item, range(50), threads=threads)) == [item * item for item in range(50)]


@pytest.mark.parametrize(("depth", "begun"), [(None, 6), (10, 10), (2, 2)])
def test_depth_limits_how_many_items_are_started_ahead_of_the_consumer(depth: int | None, begun: int) -> None:
    taken: list[int] = []
    results = map_ahead(lambda item: item, counted(taken, 100), threads=3, depth=depth)
    for number in range(5):
        assert next(results) == number
        assert len(taken) == begun + number + 1  # those ahead, and those that the consumer has
    results.close()
    assert len(taken) == begun + 5


def test_items_are_processed_in_parallel() -> None:
    both = threading.Barrier(2, timeout=SECONDS)
    assert sorted(map_ahead(lambda _: both.wait(), range(2), threads=2)) == [0, 1]


def test_an_error_is_raised_in_place_of_its_result() -> None:
    def inverse(item: int) -> float:
        return 1 / item

    results = map_ahead(inverse, [1, 2, 0, 4], threads=2)
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
