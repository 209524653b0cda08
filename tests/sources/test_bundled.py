"""What is bundled: complete, split cleanly, decodable, licensed."""

import io
import pickle

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmcon.errors import UnknownNameError
from mmcon.random import stable_ids
from mmcon.sources import bundled
from mmcon.sources.bundled import scenes
from mmcon.sources.factory import create_source

COUNTS = {
    "fashion": {"train": 10_000, "test": 2_000},
    "speech": {"train": 357, "test": 84},
    "emoji": {"train": 1270, "test": 310},
    "spoken": {"train": 1195, "test": 258},
    "motion": {"train": 160, "test": 80},
    "clip": {},
}
# The sum of the hashed ids: a change here moves keyed draws of the sample.
IDS = {
    "fashion": -3551648492612430588,
    "speech": -1990822233128297231,
    "emoji": 6619061717220236481,
    "spoken": 224677465876599839,
    "motion": 74880467810227526,
}
SPLITS = [(name, split) for name, counts in COUNTS.items() for split in counts]


def every(rows: list, n: int) -> list:
    """About n rows, evenly spread."""
    return rows[:: max(1, len(rows) // n)]


def test_names_are_these():
    assert bundled.names() == sorted(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_card_tells_what_the_files_hold(name):
    card = bundled.card(name)
    assert {"title", "licence", "source", "synthetic", "counts", "columns"} <= set(card)
    assert card["counts"] == COUNTS[name]
    assert bundled.splits_of(name) == sorted(COUNTS[name])
    for split, count in COUNTS[name].items():
        rows = bundled.rows(name, split)
        assert len(rows) == count
        assert set(rows[0]) == set(card["columns"])
    assert card["synthetic"] == (name in ("spoken", "motion"))


@pytest.mark.parametrize("name", COUNTS)
def test_licence_lies_beside(name):
    assert len((bundled.path(name) / "LICENSE").read_text(encoding="utf-8")) > 150


def test_all_is_small():
    files = [file for name in bundled.names() for file in bundled.path(name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 18e6


@pytest.mark.parametrize("name", [name for name in COUNTS if COUNTS[name]])
def test_ids_are_unique_and_as_they_were(name):
    ids = [row["id"] for split in ("train", "test") for row in bundled.rows(name, split, ["id"])]
    hashed = stable_ids(ids)
    assert len(hashed.unique()) == len(ids)
    assert int(hashed.sum()) == IDS[name]


@pytest.mark.parametrize(
    ("name", "column"), [("speech", "prompt"), ("emoji", "concept"), ("spoken", "emoji"), ("motion", "image")]
)
def test_no_unit_is_on_both_sides_of_the_split(name, column):
    train, test = ({row[column] for row in bundled.rows(name, split, [column])} for split in ("train", "test"))
    assert train
    assert test
    assert not train & test


def test_fashion_is_balanced_28_by_28_grey():
    for split, each in (("train", 1000), ("test", 200)):
        rows = bundled.rows("fashion", split)
        assert np.bincount([row["label"] for row in rows]).tolist() == [each] * 10
        classes = bundled.card("fashion")["classes"]
        assert all(row["class_name"] == classes[row["label"]] for row in rows)
        for row in every(rows, 100):
            image = Image.open(io.BytesIO(row["image"]))
            assert (image.size, image.mode) == ((28, 28), "L")
            assert np.asarray(image).max() > 60


def test_speech_is_each_prompt_in_three_languages():
    for split in ("train", "test"):
        rows = bundled.rows("speech", split)
        spoken: dict[str, set[str]] = {}
        for row in rows:
            spoken.setdefault(row["prompt"], set()).add(row["language"])
        assert all(languages == {"en", "es", "fr"} for languages in spoken.values())
        assert {row["category"] for row in rows} == {"number", "date", "letter", "phonetic", "phrase"}
        check_sounds(every(rows, 40), 8000, "FLAC")


def test_spoken_names_follow_the_emoji_and_leave_gaps():
    for split in ("train", "test"):
        names = {
            row["id"]: row for row in bundled.rows("emoji", split, ["id", "name_en", "name_de", "name_fr", "name_es"])
        }
        rows = bundled.rows("spoken", split)
        assert all(row["text"] == names[row["emoji"]][f"name_{row['language']}"] for row in rows)
        assert 0 < len({row["emoji"] for row in rows}) < len(names)
        check_sounds(every(rows, 40), 16_000, "OGG")


def check_sounds(rows: list[dict], rate: int, container: str) -> None:
    for row in rows:
        sound, found = soundfile.read(io.BytesIO(row["audio"]))
        assert (found, sound.ndim) == (rate, 1)
        assert soundfile.info(io.BytesIO(row["audio"])).format == container
        assert len(sound) / rate == pytest.approx(row["seconds"])
        assert np.abs(sound).max() > 0.02, row["id"]


def test_emoji_have_two_drawings_and_texts_in_six_languages():
    card = bundled.card("emoji")
    for split in ("train", "test"):
        rows = bundled.rows("emoji", split)
        for row in rows:
            assert row["group"] == card["classes"][row["label"]]
            for language in card["languages"]:
                assert row[f"name_{language}"]
                assert row[f"keywords_{language}"]
        for row in every(rows, 100):
            noto, twemoji = (Image.open(io.BytesIO(row[vendor])).convert("RGB") for vendor in ("noto", "twemoji"))
            assert noto.size == twemoji.size == (32, 32)
            assert noto.tobytes() != twemoji.tobytes()


def test_motion_clips_move_as_they_say():
    for split, each in (("train", 2), ("test", 1)):
        rows = bundled.rows("motion", split)
        cells = [(row["label"], row["motion"]) for row in rows]
        assert all(cells.count(cell) == each for cell in cells)
    for row in every(rows, 16):
        frames = decode(row["video"])
        assert frames.shape == (24, 64, 64)
        first, last = (np.argwhere(frame > 60) for frame in (frames[0], frames[-1]))
        (y, x), extent = last.mean(0) - first.mean(0), np.ptp(last, 0).sum() / np.ptp(first, 0).sum()
        moved = {"right": x, "left": -x, "down": y, "up": -y, "grow": 10 * (extent - 1), "shrink": 10 * (1 - extent)}
        assert moved.get(row["motion"], 5) > 3, row["id"]


def decode(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


def test_clip_has_picture_and_sound():
    with av.open(str(bundled.path("clip") / "bigbuckbunny.mp4")) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(frames) == 132
    assert frames[0].shape == (180, 320)
    assert float(np.stack(frames).std(0).mean()) > 2  # something moves
    with av.open(str(bundled.path("clip") / "bigbuckbunny.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(sound) / 48_000 == pytest.approx(5.3, abs=0.2)
    assert np.abs(sound).max() > 0.01


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'fashion'"):
        bundled.path("fashon")
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        bundled.path("fashion", "training")
    with pytest.raises(UnknownNameError, match="did you mean 'name_en'"):
        bundled.rows("emoji", "test", ["nameen"])
    with pytest.raises(UnknownNameError, match="did you mean 'speech'"):
        bundled.card("speeches")


def test_all_of_a_set_with_fixed_splits_says_which_there_are():
    with pytest.raises(
        UnknownNameError, match=r"(?s)one of its fixed splits; got 'all'.*--split in a command\): test, train"
    ):
        create_source("samples/fashion", split="all")


def test_scenes_are_pickled_once_each(monkeypatch):
    monkeypatch.setitem(scenes.CLIPS, "test", 10)
    source = create_source("samples/scenes", split="test")
    content = pickle.dumps(source)
    frames = sum(clip.frames.numel() for clip in source.clips)
    assert frames <= len(content) < frames + 100_000
    assert (pickle.loads(content).open([3])[0].frames == source.open([3])[0].frames).all()
