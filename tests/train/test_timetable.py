"""What follows a step: judged by a table that was counted by hand."""

from dataclasses import replace

import pytest

from hpe.config.run import TrainConfig
from hpe.models.checkpoints import State
from hpe.train.timetable import Due, Timetable

EPOCH, TOTAL, BATCH = 100, 250, 40
"""Two and a half epochs; no batch ends on an epoch."""


@pytest.mark.parametrize(
    ("step", "settings", "expected"),
    [
        (1, {}, "log"),  # the first step, so that a user sees at once that the run learns
        (2, {}, ""),
        (3, {}, "log validation"),  # 80 -> 120 passes the epoch's 100
        (4, {}, ""),
        (5, {}, "log validation"),  # 160 -> 200 reaches the second epoch exactly
        (6, {}, ""),
        (7, {}, "log validation"),  # 280 is beyond the end, though in the middle of an epoch
        (4, {"log_steps": 4}, "log"),
        (4, {"log_steps": 3}, ""),
        (2, {"checkpoint_steps": 2}, "checkpoint"),
        (3, {"checkpoint_steps": 2}, "log validation"),
        (2, {"validate_epochs": 0.5}, "log validation"),  # 40 -> 80 passes 50
        (3, {"validate_epochs": 2.0}, ""),
        (5, {"validate_epochs": 2.0, "checkpoint_steps": 5}, "log validation checkpoint"),
    ],
)
def test_a_step_is_followed_by_what_is_due(step: int, settings: dict[str, float], expected: str) -> None:
    before, after = (State(samples_seen=at * BATCH, step=at) for at in (step - 1, step))
    config = TrainConfig.model_validate({"epochs": 2.5, "batch": BATCH, "log_steps": 1000} | settings)
    words = expected.split()
    assert Timetable(config, EPOCH, TOTAL, 64).due(before, after) == Due(
        log="log" in words, validation="validation" in words, checkpoint="checkpoint" in words
    )


@pytest.mark.parametrize(
    ("settings", "seen", "expected"),
    [
        # 100 images an epoch at 2 a second; 250 in all
        ({}, 0, "one epoch takes about 50 s, the training about 2 min more"),
        ({}, 200, "one epoch takes about 50 s, the training about 25 s more"),
        # an epoch of images of half the side, a quarter of the pixels: 50 s now, 200 s later; 50 + 1.5 × 200 s
        ({"small_epochs": 1, "small_size": 32}, 0, "takes about 50 s, later 3 min, the training about 6 min more"),
        # the same run measured with large images
        ({"small_epochs": 1, "small_size": 32}, 150, "takes about 12 s, later 50 s, the training about 50 s more"),
    ],
)
def test_a_forecast_counts_small_images_by_their_pixels(settings: dict[str, float], seen: int, expected: str) -> None:
    config = TrainConfig.model_validate({"epochs": 2.5, "batch": BATCH} | settings)
    assert expected in Timetable(config, EPOCH, TOTAL, 64).forecast(2.0, seen)


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"small_epochs": 1.5, "small_size": 32}, {"validate_epochs": 0.7}])
def test_patience_ends_a_run_at_a_validation_and_so_at_a_checkpoint(patience: int, settings: dict[str, float]) -> None:
    """With batches that end on no epoch: 120, 200, 320, 400 … of epochs of 100."""
    config = TrainConfig.model_validate({"epochs": 40, "batch": BATCH, "patience": patience} | settings)
    timetable = Timetable(config, EPOCH, 40 * EPOCH, 64)
    for improved in range(1, 12):
        state, validated, last = State(samples_seen=0, step=0), 0, 0
        while not timetable.over(state):
            after = replace(state, samples_seen=state.samples_seen + BATCH, step=state.step + 1)
            if timetable.due(state, after).validation:
                # The first validations improve, and all while images are small, because larger ones begin anew.
                validated, last = validated + 1, after.step
                if validated <= improved or after.samples_seen <= config.small_epochs * EPOCH + BATCH:
                    after, improved = (
                        replace(after, best=0.1, best_samples=after.samples_seen),
                        max(improved, validated),
                    )
            state = after
        assert state.step == last
        assert validated - improved == patience
