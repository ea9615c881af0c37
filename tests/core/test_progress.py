"""Lengths of time as people say them."""

import pytest

from hpe.core.progress import duration


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "0 s"),
        (40, "40 s"),
        (240, "4 min"),
        (4800, "80 min"),
        (5400, "1 h 30 min"),
        (7190, "2 h 0 min"),  # 1 h 59.8 min
        (90_000, "25 h 0 min"),
        (200_000, "2 d 8 h"),
    ],
)
def test_a_length_of_time_is_given_in_the_units_that_people_use(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
