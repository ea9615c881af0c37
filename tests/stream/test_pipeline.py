"""Laws of the pipeline: a user can look at each stage, put one in between, and load it with WebDataset alone."""

import numpy as np
import pytest
import torch
import webdataset

from hpe.core.errors import UserError
from hpe.stream import Damage, Draft
from hpe.stream.batch_block import BatchBlock
from tests.stream.tiny import SAMPLES, Made, keys_of, stream, taken

NAMES = ["positions", "places", "data", "pixels", "batch"]


def stamp(draft: Draft) -> Draft:
    """The position of each sample in its first pixel, as a timestamp."""
    draft.images[:, 0, 0, 0] = np.arange(draft.start, draft.stop)
    return draft


def negative(draft: Draft) -> Draft:
    draft.images = 255 - draft.images  # another array in the place of the block's
    return draft


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 1), (1, 2)])
def test_a_stage_in_between_changes_pixels_and_nothing_else(made: Made, ranks: int, workers: int) -> None:
    shards = stream(made.folder, workers=workers)
    for rank in range(ranks):
        plain = taken(shards.endless(seed=5, batch=6, rank=rank, ranks=ranks), 8)
        loader = shards.endless(seed=5, batch=6, rank=rank, ranks=ranks)
        changed = taken(loader.insert(negative, after="pixels").insert(stamp, after="negative"), 8)
        assert list(loader.stages) == ["positions", "places", "data", "pixels", "negative", "stamp", "batch"]
        assert keys_of(changed) == keys_of(plain)
        for before, after in zip(plain, changed, strict=True):
            expected = 255 - before.batch.images
            expected[:, 0, 0, 0] = torch.arange(len(before.batch)) + before.first
            assert torch.equal(after.batch.images, expected)
            assert torch.equal(after.batch.angles, before.batch.angles)
            assert after.samples_seen == before.samples_seen


def test_a_stage_may_leave_a_sample_out_by_name_and_it_is_masked_and_counted(made: Made) -> None:
    def bright(draft: Draft) -> Draft:
        for at, picture in enumerate(draft.images):
            if picture.mean() < 20:
                draft.damage[at] = Damage("shard", draft.keys[at], "too dark")
        return draft

    loader = stream(made.folder).once(batch=8).insert(bright, after="pixels")
    batches = list(loader)
    dark = [key for key in made.keys if 4 * (int(key[-4:]) % 60) < 20]
    assert [one.key for one in loader.named_damage] == dark
    assert loader.damaged_samples == len(dark)
    assert sum(int((~loaded.batch.emotion_mask).sum()) for loaded in batches) == len(dark)
    assert keys_of(batches) == made.keys


def test_each_stage_can_be_looked_at_and_what_it_fills_in_is_there(made: Made) -> None:
    loader = stream(made.folder).once(batch=8)
    assert list(loader.stages) == NAMES
    filled = {"positions": (), "places": ("keys", "places", "labels"), "data": ("data",), "pixels": ("images",)}
    for name, fields in filled.items():
        drafts = list(loader.pipeline(until=name))
        assert sum(map(len, drafts)) == SAMPLES
        assert all(len(getattr(drafts[0], field)) == 8 for field in fields)
    draft = next(iter(loader.pipeline(until="data")))
    tar = (made.folder / "train-000000.tar").read_bytes()
    start, size = draft.places[0].tolist()
    assert draft.data[0] == tar[start : start + size]
    assert repr(draft) == "Draft of batch 0: positions 0 to 7"


@pytest.mark.parametrize("workers", [0, 2])
def test_webdatasets_own_loader_reads_the_pipeline(made: Made, workers: int) -> None:
    pipeline = stream(made.folder).once(batch=8).pipeline()
    assert isinstance(pipeline, webdataset.DataPipeline)
    loader = webdataset.WebLoader(
        pipeline, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    batches = [block.unpack() for block in loader if isinstance(block, BatchBlock)]
    assert keys_of(batches) == made.keys


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refusal_of_a_stage_is_a_message_and_no_traceback(made: Made, workers: int) -> None:
    def refuse(draft: Draft) -> Draft:
        raise UserError("this stage wants colour")

    with pytest.raises(UserError) as caught:
        list(stream(made.folder, workers=workers).once(batch=8).insert(refuse, after="places"))
    assert str(caught.value) == "this stage wants colour"


def test_a_stage_that_is_not_there_the_last_one_and_a_name_that_is_taken_are_refused(made: Made) -> None:
    loader = stream(made.folder).once(batch=8)
    for after in ("decode", "batch"):
        with pytest.raises(UserError, match=rf"{after!r}.*positions, places, data, pixels$"):
            loader.insert(stamp, after=after)
    with pytest.raises(UserError, match=r"until 'decode'.*pixels, batch$"):
        loader.pipeline(until="decode")
    with pytest.raises(UserError, match="'stamp' is there already"):
        loader.insert(stamp, after="pixels").insert(stamp, after="stamp")
