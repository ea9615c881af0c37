"""Lengths of time as people say them, and rates of what was done."""

import pytest

from hpe.core.progress import duration, progress


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


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (0, 4, "job: 4 of 4 images, "),
        (4, 0, "job: 4 of 4 images, done before\n"),
        (0, 0, "job: 0 of 4 images, in 0:00\n"),
    ],
)
def test_work_that_was_done_before_has_no_rate(
    before: int, now: int, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HPE_QUIET", raising=False)
    with progress("job", 4, unit="images", done=before) as bar:
        bar.advance(now)
    assert capsys.readouterr().err.startswith(expected)
