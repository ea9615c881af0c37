"""What follows a step, and when a run ends: pure functions of its state, so that all ranks and restarts agree."""

from dataclasses import dataclass

from hpe.config.run import TrainConfig
from hpe.core.progress import duration
from hpe.models.checkpoints import State


@dataclass(frozen=True, slots=True)
class Due:
    """What follows a step."""

    log: bool
    validation: bool
    checkpoint: bool


@dataclass(frozen=True, slots=True)
class Timetable:
    """When a run logs, validates, saves and ends.

    Attributes:
        settings: ``train`` of the config.
        epoch_samples: samples of one epoch.
        total_samples: samples of the whole run, in whole batches.
        size: ``data.size``.
    """

    settings: TrainConfig
    epoch_samples: int
    total_samples: int
    size: int

    def due(self, before: State, after: State) -> Due:
        """What follows the step from one state to the next.

        A validation is due where a multiple of ``validate_epochs`` is reached or passed, as batches seldom end on one.
        The first step is logged, so that a user sees at once that the run learns.
        """
        settings, epoch = self.settings, self.epoch_samples
        passed = settings.validations(after.samples_seen, epoch) > settings.validations(before.samples_seen, epoch)
        validation = passed or after.samples_seen >= self.total_samples
        return Due(
            log=validation or before.step == 0 or after.step % self.settings.log_steps == 0,
            validation=validation,
            checkpoint=bool(self.settings.checkpoint_steps) and after.step % self.settings.checkpoint_steps == 0,
        )

    def over(self, state: State) -> bool:
        """Whether a run ends here: all its samples are seen, or ``train.patience`` is used up."""
        impatient = self.settings.out_of_patience(state.samples_seen, state.best_samples, self.epoch_samples)
        return impatient or state.samples_seen >= self.total_samples

    def work(self, samples_seen: int) -> float:
        """The work of the first samples of a run, in images of ``data.size``.

        Images of ``train.small_size`` are taken to need time as they have pixels.
        """
        small = min(samples_seen, self._small_samples)
        return small * self._small_share + samples_seen - small

    def forecast(self, images_per_second: float, samples_seen: int) -> str:
        """How long an epoch and the rest of the run take at the rate of the last steps, validations apart.

        Args:
            images_per_second: of all ranks together.
            samples_seen: so far.
        """
        share = self._small_share if samples_seen < self._small_samples else 1.0
        work_per_second = max(images_per_second, 1e-9) * share
        epoch = duration(self.epoch_samples / work_per_second)
        if self._small_samples:
            epoch = f"{duration(self.epoch_samples * self._small_share / work_per_second)}, later {epoch}"
        rest = duration((self.work(self.total_samples) - self.work(samples_seen)) / work_per_second)
        return f"one epoch takes about {epoch}, the training about {rest} more, validations not counted"

    @property
    def _small_samples(self) -> int:
        return min(round(self.settings.small_epochs * self.epoch_samples), self.total_samples)

    @property
    def _small_share(self) -> float:
        """The work of a small image, as a fraction of that of a large one."""
        return (self.settings.small_size / self.size) ** 2 if self.settings.small_size else 1.0
