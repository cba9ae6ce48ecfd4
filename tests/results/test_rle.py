"""Run-length strings are accepted only where pycocotools reads the same runs."""

import pytest
from pycocotools import mask as coco_mask

from local2global.results.rle import RunsError, decode_counts

RUNS = [10, 150, 30, 10, 200]


def text(number, digits):
    """A number in a fixed number of digits, more than the shortest form has."""
    parts = [number >> 5 * k & 31 for k in range(digits)]
    return "".join(chr(48 + part + 32 * (k < digits - 1)) for k, part in enumerate(parts))


def counts(digits):
    """`RUNS` as a string whose fourth number, 10 - 150, has so many digits."""
    return text(10, 1) + text(150, 2) + text(30, 2) + text(10 - 150, digits) + text(200 - 30, 2)


@pytest.mark.parametrize("digits", range(2, 7))
def test_a_number_may_have_superfluous_digits(digits):
    assert decode_counts([counts(digits)])[0].tolist() == RUNS
    assert coco_mask.area({"size": [20, 20], "counts": counts(digits)}) == 160


@pytest.mark.parametrize("digits", [7, 8])
def test_a_negative_number_that_pycocotools_misreads_is_refused(digits):
    with pytest.raises(RunsError, match="more than 31 bits") as error:
        decode_counts([counts(2), counts(digits)])
    assert error.value.index == 1


def test_a_run_of_seven_digits_is_read():
    assert decode_counts([text(1 << 30, 7)])[0].tolist() == [1 << 30]
