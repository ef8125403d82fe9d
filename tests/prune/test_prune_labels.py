"""Labels move as the tensor does: every reshape is compared with labels written out in full."""

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.prune.labels import reshape_labels, shrink


def factorisations(n):
    """Shapes of n elements, ones among them."""

    @st.composite
    def shape(draw):
        left, dims = n, []
        while left > 1:
            d = draw(st.sampled_from([k for k in range(1, left + 1) if left % k == 0]))
            dims.append(d)
            left //= d
            if len(dims) > 5:
                dims.append(left)
                break
        return tuple(dims) or (1,)

    return shape()


@st.composite
def cases(draw):
    n = draw(st.sampled_from([1, 6, 8, 12, 24, 36, 48, 60]))
    old, new = draw(factorisations(n)), draw(factorisations(n))
    carries = draw(st.lists(st.booleans(), min_size=len(old), max_size=len(old)))
    shape = [d if c else 1 for d, c in zip(old, carries, strict=True)]
    fewer = draw(st.integers(1, 4))
    flat = draw(st.lists(st.integers(0, fewer * prod(shape)), min_size=prod(shape), max_size=prod(shape)))
    return np.array(flat, dtype=np.int64).reshape(shape), old, new


@settings(deadline=None, max_examples=300, derandomize=True)
@given(cases())
def test_reshape_equals_the_reshape_of_every_elements_label(case):
    labels, old, new = case
    found = reshape_labels(labels, old, new)
    assert found is not None
    expected = np.broadcast_to(labels, old).reshape(new)
    moved, _ = found
    assert len(moved.shape) == len(new)
    np.testing.assert_array_equal(np.broadcast_to(moved, new), expected)


def test_a_reshape_writes_out_only_the_run_that_carries_channels():
    labels = np.arange(6).reshape(1, 6, 1, 1)
    found, rectangles = reshape_labels(labels, (32, 6, 7, 5), (32, 2, 3, 35))
    assert found.shape == (1, 2, 3, 1)
    np.testing.assert_array_equal(rectangles, [np.arange(6).reshape(2, 3)])
    found, rectangles = reshape_labels(labels, (32, 6, 7, 5), (32, 6 * 35))
    assert found.shape == (1, 210)
    assert rectangles == []


def test_shapes_that_do_not_line_up_have_no_labels():
    assert reshape_labels(np.arange(4).reshape(4), (4,), (5,)) is None
    assert reshape_labels(np.arange(4).reshape(4), (4,), (2, 3)) is None


def test_shrink_drops_only_what_does_not_change():
    labels = np.broadcast_to(np.arange(3).reshape(1, 3, 1), (4, 3, 5))
    np.testing.assert_array_equal(shrink(labels), np.arange(3).reshape(1, 3, 1))
    mixed = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(shrink(mixed), mixed)
