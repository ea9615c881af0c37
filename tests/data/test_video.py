"""Videos: upright frames with true times, damage counted, hostile files refused, and a writer that keeps times."""

import os
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from hpe.core.errors import UserError
from hpe.data import video as module
from hpe.data.video import Video, VideoWriter, copy_sound, is_camera, is_video, upright
from tests import made_video
from tests.served import served


def frames(path: Path | str, **options) -> tuple[Video, list[module.Frame]]:
    with Video(path, **options) as video:
        return video, list(video)


def brightness(frame: module.Frame) -> float:
    return float(frame.picture[-8:, -8:].mean())


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a b.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p10le"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("grey.mkv", "ffv1", "gray"),
        ("alpha.mov", "qtrle", "argb"),
    ],
)
def test_every_frame_is_read_in_order_with_its_time(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    pictures = made_video.shades(12)
    if pixels == "argb":
        pictures = [np.dstack((one, np.full(one.shape[:2], 255, np.uint8))) for one in pictures]
    video, found = frames(made_video.write(tmp_path / name, pictures, codec=codec, pixels=pixels))
    assert [one.number for one in found] == list(range(12))
    np.testing.assert_allclose([one.seconds for one in found], np.arange(12) / 10, atol=2e-3)
    seen = [brightness(one) for one in found]
    np.testing.assert_allclose(seen, [brightness(module.Frame(0, 0.0, one[..., :3])) for one in pictures], atol=8)
    assert (video.damaged, video.cut_off, video.retimed, video.rate) == (0, None, 0, 10.0)


def test_times_of_a_variable_rate_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.9, 2.0, 2.01]
    _, found = frames(made_video.write(tmp_path / "v.mp4", made_video.shades(6), times=times))
    np.testing.assert_allclose([one.seconds for one in found], times, atol=1e-4)


def test_a_time_that_no_video_has_is_replaced(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mkv"), "w") as made:
        stream = made.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, milliseconds in zip(made_video.shades(4), (0, 100, 2**61, 2**61 + 100), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    with Video(tmp_path / "v.mkv") as video, module.annotated(video, tmp_path / "out.mp4") as write:
        for frame in video:
            write(frame.picture, frame.seconds)
    assert video.retimed == 2
    assert [one.seconds for one in frames(tmp_path / "out.mp4")[1]] == [0.0, 0.1, 0.2, 0.3]


def test_times_differ_also_where_they_are_nearer_than_a_microsecond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made_video.write(tmp_path / "v.mp4", made_video.shades(3))
    with Video(path) as video:
        known = {"is_corrupt": False, "duration": None, "time_base": None}
        near = [SimpleNamespace(time=time, **known) for time in (0.0, 1e-7, 2e-7)]
        monkeypatch.setattr(video, "_undamaged", lambda: iter(near))
        monkeypatch.setattr(video, "_picture", lambda _: np.zeros((2, 2, 3), np.uint8))
        assert [one.seconds for one in video._decoded()] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_turned_video_is_upright(tmp_path: Path, turns: int) -> None:
    path = made_video.write(tmp_path / "v.mp4", made_video.shades(3), quarter_turns=turns)
    _, found = frames(path)
    expected = np.rot90(made_video.shades(3)[0], turns)
    assert found[0].picture.shape == expected.shape
    assert np.abs(found[0].picture.astype(int) - expected).mean() < 8


def test_all_eight_display_matrices_are_applied() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, 2)
    rows, columns = np.mgrid[:2, :3]
    for a, b, c, d in ((s, 0, 0, t) for s in (1, -1) for t in (1, -1)):
        for one, two, three, four in ((a, b, c, d), (b, a, d, c)):
            matrix = np.array(((one << 16, two << 16, 0), (three << 16, four << 16, 0), (0, 0, 1 << 30)))
            x, y = one * columns + three * rows, two * columns + four * rows
            shown = upright(picture, matrix)
            np.testing.assert_array_equal(shown[y - y.min(), x - x.min()], picture)


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = made_video.write(tmp_path / "v.mp4", made_video.shades(3), options={"x264-params": "sar=4/3"})
    assert frames(path)[1][0].picture.shape == (48, 85, 3)


def test_the_first_video_is_read_and_the_others_are_noted(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "two.mkv"), "w") as made:
        streams = [made.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, side in zip(streams, (64, 32), strict=True):
            stream.width = stream.height = side
        for stream in streams:
            for shade in (10, 200):
                frame = av.VideoFrame.from_ndarray(np.full((stream.height, stream.width, 3), shade, np.uint8))
                made.mux(stream.encode(frame))
            made.mux(stream.encode(None))
    video, found = frames(tmp_path / "two.mkv")
    assert [one.picture.shape for one in found] == [(64, 64, 3)] * 2
    assert "2 videos in this file" in video.notes[0]


def test_what_a_truncated_file_still_has_is_read_and_the_rest_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3)).astype(np.uint8)
    path = made_video.write(tmp_path / "v.mkv", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video, found = frames(path)
    assert 10 < len(found) < 30
    assert video.cut_off is not None
    fast = tmp_path / "fast.mp4"
    made_video.write(fast, noise, options={})
    with av.open(str(fast)) as source, av.open(str(tmp_path / "f.mp4"), "w", options={"movflags": "faststart"}) as made:
        stream = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    whole = (tmp_path / "f.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    video, found = frames(tmp_path / "cut.mp4")
    assert 10 < len(found) < 30
    assert video.cut_off is not None


def test_damage_in_the_middle_is_counted_and_reading_goes_on(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3)).astype(np.uint8)
    path = made_video.write(tmp_path / "v.avi", noise, codec="mpeg4", options={"g": "5"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8000] = np.random.default_rng(1).bytes(8000)
    path.write_bytes(data)
    video, found = frames(path)
    assert len(found) > 20
    assert video.damaged or video.cut_off


def test_what_is_no_video_gets_one_message(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    made_video.write(tmp_path / "silent.mp4", made_video.shades(2), sound="aac")
    with av.open(str(tmp_path / "silent.mp4")) as source, av.open(str(tmp_path / "sound.m4a"), "w") as made:
        stream = made.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    for name, reason in (
        ("text.mp4", "cannot be read as a video"),
        ("empty.mp4", "0 bytes"),
        ("none.mp4", "no such file"),
        ("sound.m4a", "has no video but sound"),
        (".", "not a regular file"),
    ):
        with pytest.raises(UserError, match=reason):
            Video(tmp_path / name)


def _playlists(segment: str) -> dict[str, str]:
    """Files of every kind that name another one to be played."""
    representation = f"<Representation id='1' bandwidth='9'><BaseURL>{segment}</BaseURL></Representation>"
    adaptation = f"<AdaptationSet mimeType='video/mp4'>{representation}</AdaptationSet>"
    return {
        "concat": f"ffconcat version 1.0\nfile {segment}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n",
        "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        f"mediaPresentationDuration='PT1S'><Period>{adaptation}</Period></MPD>",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }


@pytest.mark.parametrize("kind", _playlists(""))
def test_a_playlist_under_a_videos_name_opens_no_other_file_and_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    other = made_video.write(tmp_path / "secret.mp4", made_video.shades(3))
    with served(tmp_path) as server:
        for segment in (other.name, str(other), other.as_uri(), f"{server.url}/secret.mp4", f"crypto+file:{other}"):
            for suffix in (".mp4", ".ts"):
                list_ = tmp_path / f"list{suffix}"
                list_.write_text(_playlists(segment)[kind])
                with pytest.raises(UserError, match="cannot be read as a video"):
                    Video(list_)
                with list_.open("rb") as data, monkeypatch.context() as stdin:
                    stdin.setattr(sys, "stdin", type("Stdin", (), {"buffer": data}))
                    with pytest.raises(UserError, match="cannot be read as a video"):
                        Video("-")
    assert not server.asked


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path: Path) -> None:
    other = made_video.write(tmp_path / "secret.mp4", made_video.shades(3))
    (tmp_path / "concat:secret.mp4").write_bytes(other.read_bytes())
    assert len(frames(tmp_path / "concat:secret.mp4")[1]) == 3


@pytest.mark.parametrize("kind", ["concat", "hls", "dash"])
def test_a_servers_playlist_opens_no_file_of_this_machine(tmp_path: Path, kind: str) -> None:
    other = made_video.write(tmp_path / "secret.ts", made_video.shades(3))
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served") as server:
        for segment in (other.as_uri(), str(other), f"crypto+file:{other}"):
            for name in ("list.m3u8", "list.mpd", "list.mp4"):
                (tmp_path / "served" / name).write_text(_playlists(segment)[kind])
                with pytest.raises(UserError, match="no video from this address"):
                    frames(f"{server.url}/{name}")


def test_large_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = made_video.write(tmp_path / "v.mp4", made_video.shades(2))
    with pytest.raises(UserError, match=r"64 × 48 pixels.*--max-megapixels"):
        Video(path, max_pixels=3000)


def test_a_video_without_frames_gets_one_message(tmp_path: Path) -> None:
    path = made_video.write(tmp_path / "v.mp4", made_video.shades(1))
    with av.open(str(path)) as source, av.open(str(tmp_path / "none.mkv"), "w") as made:
        made.add_stream_from_template(source.streams.video[0])
        made.start_encoding()
    with pytest.raises(UserError, match="has no frame"):
        Video(tmp_path / "none.mkv")


def test_cameras_and_addresses_that_do_not_answer_get_one_message_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 1.0)
    assert is_camera("7")
    with pytest.raises(UserError, match=r"camera 7: cannot be opened .*camera"):
        Video("7")
    with pytest.raises(UserError, match=r"rtsp://\*\*\*@127\.0\.0\.1:9/a: no video from this address"):
        Video("rtsp://user:secret@127.0.0.1:9/a")


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(module, "WAIT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        for scheme in ("rtsp", "http"):
            with pytest.raises(UserError, match="no video from this address"):
                Video(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/a")


def test_a_video_comes_over_http_and_from_the_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_video.write(tmp_path / "v.mkv", made_video.shades(5))
    with served(tmp_path) as server:
        assert len(frames(f"{server.url}/v.mkv")[1]) == 5
    with (tmp_path / "v.mkv").open("rb") as data:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": data}))
        assert len(frames("-")[1]) == 5


def test_without_pyav_there_is_one_message_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'hpe\[video\]'"):
        Video(tmp_path / "v.mp4")


def test_names_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(map(is_video, ("a.MP4", "0", "rtsp://a/b", "-", "x/y.webm", "https://a/b.mp4")))
    assert not any(map(is_video, ("a.jpg", "photos", "1234", "*.png", "01.jpg")))
    Path("0").mkdir()
    assert not is_video("0")
    assert is_video(f"{'x' * 300}.mp4")
    with pytest.raises(UserError, match="file name too long; expected a video"):
        Video(f"{'x' * 300}.mp4")


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (1, 1), (2, 5)])
def test_what_is_written_is_read_again_with_its_times(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures, times = made_video.shades(5, *size), [0.0, 0.04, 0.5, 0.52, 3.0]
    writer = VideoWriter(tmp_path / "v.mp4", size, 25.0)
    for picture, seconds in zip(pictures, times, strict=True):
        writer.write(picture, seconds)
    writer.close()
    _, found = frames(tmp_path / "v.mp4")
    np.testing.assert_allclose([one.seconds for one in found], times, atol=1e-4)
    assert found[0].picture.shape == (max(size[1] & ~1, 2), max(size[0] & ~1, 2), 3)
    assert abs(float(found[-1].picture[-1, -1].mean()) - float(pictures[-1][-1, -1].mean())) < 12


def test_a_frame_of_another_size_is_scaled_into_the_first(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "v.mp4", (64, 48), 10.0)
    writer.write(np.full((48, 64, 3), 200, np.uint8), 0.0)
    writer.write(np.full((100, 50, 3), 200, np.uint8), 0.1)
    writer.close()
    second = frames(tmp_path / "v.mp4")[1][1].picture
    assert second[24, 32].mean() > 180
    assert second[24, 2].mean() < 30


def test_sound_is_copied_where_mp4_takes_it(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "aac"), ("o.mkv", "libopus")):
        path = made_video.write(tmp_path / name, made_video.shades(20), sound=codec, codec="libx264")
        with Video(path) as video:
            assert video.has_sound
            writer = VideoWriter(tmp_path / "silent.mp4", (64, 48), video.rate)
            for frame in video:
                writer.write(frame.picture, frame.seconds)
            writer.close()
            assert copy_sound(video, tmp_path / "silent.mp4", tmp_path / "out.mp4") is None
        with av.open(str(tmp_path / "out.mp4")) as made, av.open(str(path)) as source:
            heard = sum(frame.samples for frame in made.decode(made.streams.audio[0]))
            said = sum(frame.samples for frame in source.decode(source.streams.audio[0]))
            assert abs(heard - said) < 4096
        assert len(frames(tmp_path / "out.mp4")[1]) == 20


def test_the_sound_of_what_can_be_read_once_is_left_out_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = made_video.write(tmp_path / "whole.mkv", made_video.shades(5), sound="aac")
    os.mkfifo(pipe := tmp_path / "v.mkv")
    sender = threading.Thread(target=lambda: pipe.write_bytes(whole.read_bytes()))
    sender.start()
    with Video(pipe) as video, module.annotated(video, tmp_path / "out.mp4") as write:
        for frame in video:
            write(frame.picture, frame.seconds)
    sender.join()
    assert len(frames(tmp_path / "out.mp4")[1]) == 5
    assert "without the sound, which cannot be copied (it is not a file" in capsys.readouterr().err
