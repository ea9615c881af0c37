"""``hpe.load``: whatever an image is given as, the answer is the same, and what is no image is refused."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import hpe
from hpe.core.labels import EMOTIONS
from hpe.data.detect import Face as Found
from hpe.data.images import RGBImage, crop_resize, decode_rgb, encode_jpeg
from hpe.predict import face_finders
from tests import made

DOCS = Path(__file__).parents[2] / "docs"
SIDE = made.SIDE


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("reader") / "shards")


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.untrained(tmp_path_factory.mktemp("reader-run") / "run", shards)


@pytest.fixture(scope="module")
def model(run: Path) -> hpe.FaceReader:
    return hpe.load(run, device="cpu")


@pytest.fixture
def pixels() -> RGBImage:
    return decode_rgb(encode_jpeg(made.picture(3, 1, 0), 95))


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that sees a face wherever there is bright red: its box."""

    class Reds:
        name = "reds"

        def detect(self, images: Sequence[RGBImage]) -> list[list[Found]]:
            return [list(self._faces(image)) for image in images]

        @staticmethod
        def _faces(image: RGBImage) -> Iterator[Found]:
            y, x = np.nonzero((image[..., 0] > 200) & (image[..., 1] < 60))
            if len(x):
                yield (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)), 0.75

    monkeypatch.setattr(face_finders, "open_detector", lambda *_, **__: Reds())


def photo(width: int = 90, height: int = 60) -> RGBImage:
    image = np.full((height, width, 3), 30, np.uint8)
    image[10:30, 20:40] = (250, 10, 10)
    return image


def test_pixels_are_read_alike_whatever_holds_them(model: hpe.FaceReader, pixels: RGBImage, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "face.png")
    face = model(tmp_path / "face.png")[0]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for given in (
        pixels, np.asfortranarray(pixels), Image.fromarray(pixels), tensor, tensor.float() / 255,
        tensor.double().numpy().transpose(1, 2, 0) / 255, (tmp_path / "face.png").read_bytes(),
    ):  # fmt: skip
        assert model(given)[0] == face, type(given)
    for given in (pixels[..., ::-1], tensor.flip(0)):
        assert model(given, colour="bgr")[0] == face
        assert model(given)[0] != face
    assert [one[0] for one in model([pixels, tensor, str(tmp_path / "face.png")])] == [face] * 3
    assert [one[0] for one in model.each(image for image in (pixels, tensor))] == [face] * 2


def test_grey_pixels_are_the_same_in_all_channels(model: hpe.FaceReader, pixels: RGBImage) -> None:
    grey = pixels[..., 0]
    face = model(np.repeat(grey[..., None], 3, 2))[0]
    for given in (grey, grey[..., None], torch.from_numpy(grey.copy())[None], Image.fromarray(grey)):
        assert model(given)[0] == face


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (np.zeros((32, 32, 3), np.int64), r"int64 \[32, 32, 3\]: expected uint8.*astype\('uint8'\)"),
        (np.zeros((32, 32, 3), bool), "bool"),
        (np.full((32, 32, 3), 255.0), "float64 .* from 255 to 255: expected floats from 0 to 1; if its values are 0"),
        (torch.randn(3, 32, 32), "normalised image must be given as it was before"),
        (np.full((32, 32, 3), np.nan), "contains NaN"),
        (torch.full((3, 32, 32), torch.inf), "infinity"),
        (np.zeros((3, 32, 32), np.uint8), r"expected \[height, width, 3\].*transpose\(1, 2, 0\)"),
        (torch.zeros(32, 32, 3), r"expected \[3, height, width\].*permute\(2, 0, 1\)"),
        (np.zeros((32, 32, 4), np.uint8), r"image\[..., :3\]"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"several images; give list\(images\)"),
        (torch.zeros(2, 3, 32, 32), r"several images; give list\(images\)"),
        (np.zeros((0, 32, 3), np.uint8), "empty"),
        (torch.zeros(3, 32, 0), "empty"),
        (np.zeros(32, np.uint8), r"expected \[height, width, 3\]"),
        (np.empty((), object), r"expected \[height, width, 3\]"),
        (np.full((32, 32, 3), "a"), "expected uint8"),
        (b"", "empty file"),
        (Image.new("F", (8, 8)), "floating-point"),
        (object(), "object: expected an image or a list"),
        ({"a": 1}, "dict: expected an image or a list"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(model: hpe.FaceReader, given: object, why: str) -> None:
    with pytest.raises(hpe.UserError, match=why):
        model(given)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_the_mistake_in_a_list_names_its_place(model: hpe.FaceReader, pixels: RGBImage) -> None:
    with pytest.raises(hpe.UserError, match=r"^image 2: an array of float64"):
        model([pixels, pixels, pixels * 1.0])
    with pytest.raises(hpe.UserError, match="NoneType 1"):
        model([pixels, None])  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_an_order_of_colours_is_for_pixels_alone(model: hpe.FaceReader, pixels: RGBImage, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "face.png")
    for given in (tmp_path / "face.png", Image.fromarray(pixels)):
        with pytest.raises(hpe.UserError, match="states its own"):
            model(given, colour="bgr")
    with pytest.raises(hpe.UserError, match="'rgb' or 'bgr'"):
        model(pixels, colour="hsv")  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_a_detector_finds_the_faces_and_an_image_without_one_says_so(run: Path, detector: None) -> None:
    model = hpe.load(run, faces="mtcnn", device="cpu", crop="square-1.0@detector")
    empty = np.zeros((40, 50, 3), np.uint8)
    first, second, third = model([photo(), empty, photo()])
    assert first == model(photo()) == third or first.faces == third.faces
    (face,) = first
    assert (face.box, face.score) == ((20, 10, 40, 30), 0.75)
    assert (len(second), second.problem, second.unread, bool(second)) == (0, "no face found", False, False)
    with pytest.raises(hpe.UserError, match="image 1: no face found"):
        second[0]
    given = hpe.load(run, device="cpu")(crop_resize(photo(), (20, 10, 40, 30), SIDE))[0]
    assert face.yaw == given.yaw
    assert face.probabilities == given.probabilities


def test_boxes_are_cropped_as_those_of_a_detector(run: Path, detector: None) -> None:
    box = (20.0, 10.0, 40.0, 30.0)
    found = hpe.load(run, faces="hog", device="cpu", crop="square-1.5@detector")
    model = hpe.load(run, device="cpu", crop="square-1.5@detector")
    (face,) = model(photo(), boxes=[box])
    assert face.box == box
    assert (face.yaw, face.probabilities) == (found(photo())[0].yaw, found(photo())[0].probabilities)
    one, two = model([photo(), photo()], boxes=[[box], []])
    assert (one.faces, len(two)) == ((face,), 0)
    stacked = model([photo(), photo()], boxes=np.array([[box], [box]]))  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert [each.faces for each in stacked] == [(face,), (face,)]
    with pytest.raises(hpe.UserError, match="no boxes were given"):
        two[0]
    for boxes, why in (([(200, 10, 240, 30)], "lies outside"), ([(1, 2, 3)], "expected x0"), ([(5, 5, 5, 5)], "empty"),
                       ([(float("nan"), 0, 1, 1)], "not four numbers"), ([("a", 0, 1, 1)], "expected x0")):  # fmt: skip
        with pytest.raises(hpe.UserError, match=f"box 0.*{why}"):
            model(photo(), boxes=boxes)  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(hpe.UserError, match="1 list of boxes for 2 images"):
        model([photo(), photo()], boxes=[[box]])


def test_shards_give_every_sample_in_order_as_hpe_evaluate_sees_it(model: hpe.FaceReader, shards: Path) -> None:
    found = list(model(hpe.ShardSet(str(shards), "val")))
    assert [one.key for one in found] == [f"sample{number}" for number in range(10_000, 10_024)]
    assert all(len(one) == 1 for one in found)
    assert [one[0] for one in model.each(str(shards / "val-000000.tar"))] == [one[0] for one in found]
    assert len(list(model.each(shards))) == 87 + 24
    with pytest.raises(hpe.UserError, match=r"is a folder; go through it with model\.each"):
        model(str(shards))
    with pytest.raises(hpe.UserError, match="no such file"):
        model(hpe.ShardSet(str(shards / "absent")))


def test_damaged_shards_lose_nothing_in_silence(model: hpe.FaceReader, shards: Path, tmp_path: Path) -> None:
    whole = (shards / "train-000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"1 image could not be read: .*cut\.tar"):
        found = list(model.each(tmp_path / "cut.tar"))
    assert [one.unread for one in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].problem


def test_results_become_dicts_tables_and_drawings(model: hpe.FaceReader, pixels: RGBImage, tmp_path: Path) -> None:
    faces = model([pixels, made.picture(5, 2, 1)])
    table = pandas.concat([one.to_pandas() for one in faces], ignore_index=True)
    assert table.shape[0] == 2
    assert set(table["emotion"]) <= set(EMOTIONS)
    np.testing.assert_allclose(table[[f"emotion_{name}" for name in EMOTIONS]].sum(axis=1), 1, atol=1e-5)
    assert faces[0].to_dict()["faces"][0]["yaw"] == faces[0][0].yaw == table["yaw"][0]
    drawn = faces[0].draw("cube")
    assert min(drawn.size) >= 256
    assert np.asarray(drawn).std() > 0
    Image.fromarray(pixels).save(tmp_path / "face.png")
    path = model(tmp_path / "face.png")
    assert path.draw("cube").tobytes() == drawn.tobytes()
    (tmp_path / "face.png").unlink()
    with pytest.raises(hpe.UserError, match=r"face\.png"):
        path.draw()
    with pytest.raises(hpe.UserError, match="expected axes or cube"):
        faces[0].draw("circle")  # pyright: ignore[reportArgumentType]


def test_columns_by_name_work_for_one_more_version(model: hpe.FaceReader, pixels: RGBImage) -> None:
    with pytest.warns(DeprecationWarning, match="use the attributes"):
        assert model(pixels)["emotion"] == model(pixels)[0].emotion
    with pytest.warns(DeprecationWarning, match="use the attributes"):
        assert model(pixels)[0]["yaw"] == model(pixels)[0].yaw


def test_a_network_without_a_head_or_a_number_gives_none(shards: Path, tmp_path: Path, pixels: RGBImage) -> None:
    model = hpe.load(made.untrained(tmp_path / "run", shards, "model.heads={pose: {kind: sixd}}"), device="cpu")
    face = model(pixels)[0]
    assert (face.heads, face.emotion, face.probabilities, face.deviations, face.valence) == (("pose",), *[None] * 4)
    assert face.angles is not None
    assert list(face.to_dict()) == ["x0", "y0", "x1", "y1", "score", "direction", "yaw", "pitch", "roll", "yaw_sd",
                                    "pitch_sd", "roll_sd"]  # fmt: skip
    assert list(model(pixels).to_pandas().columns)[3:] == list(face.to_dict())


def test_device_and_precision_are_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = hpe.load(run, device="cpu")
    assert (
        "on cpu in fp32 (as in training); each image is to be one face (whole photos: faces='"
        in capsys.readouterr().err
    )
    assert (str(model.device), model.precision) == ("cpu", "fp32")
    with pytest.raises(hpe.UserError, match="fp16 needs a GPU"):
        hpe.load(run, device="cpu", precision="fp16")
    with pytest.raises(hpe.UserError, match="faces='eyes': expected None, 'mtcnn' or 'hog'"):
        hpe.load(run, faces="eyes")


def test_the_python_of_the_page_runs(
    run: Path, shards: Path, detector: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order and in one namespace, as a reader would paste it: docs/python.md."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/ferplus").symlink_to(run)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/ferplus").symlink_to(shards)
    (tmp_path / "photos").mkdir()
    for place in ("face.jpg", "photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        (tmp_path / place).write_bytes(encode_jpeg(photo(), 95))
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "python.md").read_text(encoding="utf-8").replace('split="test"', 'split="val"')
    names: dict[str, object] = {"__name__": "page"}
    for block in text.split("```python\n")[1:]:
        exec(compile(block.partition("```")[0], "python.md", "exec"), names)
    assert (tmp_path / "drawn.jpg").is_file()
