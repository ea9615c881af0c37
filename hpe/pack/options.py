"""Which options of ``hpe pack`` decide the bytes of the shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from hpe.core.errors import UserError

Drop = Literal["none", "exact", "near"]
_LARGEST_SIDE: Final = 4096
_DRAWN_SHARE: Final = 0.1
MAX_MEGAPIXELS: Final = 64


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the bytes of the shards, beside the raw dataset.

    Attributes:
        crop: a crop rule, ``none`` (the centre square), ``keep`` (the original bytes), or None for the rule
            that suits the dataset.
        size: side of the stored pictures in pixels.
        grey: store one channel.
        quality: of the JPEGs, 1..100.
        splits: ``own`` (those of the dataset), ``drawn`` (all anew, whatever the dataset has), or a folder with
            ``train.txt``, ``val.txt``, ``test.txt``.
        val_share, test_share: shares of the samples, for splits that are drawn (0.1 when None).
        detector: mtcnn or hog, for crop rules that start from the detector's box.
        drop: which copies to leave out: none, those with the same bytes, or near ones too.
        max_megapixels: larger raw pictures go to quarantine.
    """

    crop: str | None = None
    size: int = 224
    grey: bool = False
    quality: int = 95
    samples_per_shard: int = 1000
    seed: int = 0
    splits: Path | Literal["own", "drawn"] = "own"
    val_share: float | None = None
    test_share: float | None = None
    detector: str = "mtcnn"
    drop: Drop = "none"
    max_megapixels: float = MAX_MEGAPIXELS

    def check(self) -> None:
        """Refuse impossible values.

        Raises:
            UserError: an option is out of its range.
        """
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: expected 1 to 100")
        if not 8 <= self.size <= _LARGEST_SIDE:
            raise UserError(f"--size {self.size}: expected 8 to {_LARGEST_SIDE} pixels")
        if self.samples_per_shard < 1:
            raise UserError(f"--samples-per-shard {self.samples_per_shard}: expected 1 or more")
        val, test = self.shares
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise UserError(
                f"--val-share {val:g}, --test-share {test:g}: expected two shares of 0 "
                "or more that leave something to train on, such as 0.1 and 0.1"
            )
        if self.drop not in get_args(Drop):
            raise UserError(f"--drop-duplicates {self.drop!r}: expected {', '.join(get_args(Drop))}")
        from hpe.data.images import pixels_of  # late: it imports torch, which worker processes do meanwhile

        pixels_of(self.max_megapixels)
        if self.crop == "keep" and self.max_megapixels > MAX_MEGAPIXELS:
            raise UserError(
                f"--max-megapixels {self.max_megapixels:g} with --crop keep: training reads at most {MAX_MEGAPIXELS} "
                "megapixels; use a crop rule, or leave the option out"
            )
        if self.crop == "keep" and self.grey:
            raise UserError("--grey with --crop keep: original bytes stay as they are; use --crop none, or no --grey")

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of val and test, where these are drawn."""
        return (
            _DRAWN_SHARE if self.val_share is None else self.val_share,
            _DRAWN_SHARE if self.test_share is None else self.test_share,
        )

    def check_shares(self, dataset: str, named: Sequence[str]) -> None:
        """Refuse a share for a split that is not drawn.

        Args:
            dataset: its name, for the message.
            named: the dataset's own splits.

        Raises:
            UserError: a share is given, and the dataset or the lists already define that split.
        """
        if self.splits == "drawn" or (self.splits == "own" and not named):
            return
        for split, share in (("val", self.val_share), ("test", self.test_share)):
            if share and isinstance(self.splits, Path):
                raise UserError(f"--{split}-share: the lists in {self.splits} define {split}; leave the option out")
            if share and (split in named or split == "test"):
                raise UserError(
                    f"--{split}-share: {dataset} has its own splits ({', '.join(named)}); leave the option out, or "
                    "draw all splits anew with --splits drawn"
                )
