"""Scores of annotators over time: how they are read, what a view's score is, and the weights of pairs."""

import math
from pathlib import Path

import pytest
import torch
from made_videos import EVEN, write

from mmcon.affinity import SameLabel, ScoreKernel
from mmcon.batch import Index
from mmcon.errors import DataError, InputError
from mmcon.sources.factory import create_source
from mmcon.sources.scores import Scores, read_scores


@pytest.fixture
def videos(tmp_path):
    """Two videos of two seconds, in folders of classes."""
    for i in range(2):
        (tmp_path / "videos" / "ab"[i]).mkdir(parents=True)
        write(tmp_path / "videos" / "ab"[i] / f"{i}.mp4", stamps=EVEN[:20])
    return tmp_path / "videos"


@pytest.fixture
def source(videos):
    return create_source(videos, split="all")


def table(source, times):
    group = source.facts["group"].repeat_interleave(len(times))
    return Index({"group": group, "time": torch.tensor(times, dtype=torch.float64).repeat(len(source))})


def test_scores_are_linear_between_annotations_and_constant_outside(tmp_path, source, caplog):
    file = tmp_path / "scores.csv"
    file.write_text("Video; Seconds; Score\na/0.mp4;0.5;1\na/0.mp4;1.5;3\n1;1;7\n1;1;9\nc.mp4;1;9\n".replace("; ", ";"))
    scores = read_scores(file, [source])
    found = scores(table(source, [0.0, 0.5, 1.0, 1.25, 1.5, 2.0]))
    # The first video rises from 1 at .5 s to 3 at 1.5 s; the other has the mean of two annotators at one time.
    assert found.tolist() == [1.0, 1.0, 2.0, 2.5, 3.0, 3.0] + [8.0] * 6
    assert "1 videos that the sources lack are left out, such as 'c.mp4'" in caplog.text
    assert scores.spread == pytest.approx(math.sqrt(((1 - 4) ** 2 + (3 - 4) ** 2 + (8 - 4) ** 2) / 3))


def test_weights_fall_with_the_difference_of_scores(source):
    first, second = source.facts["group"].tolist()
    scores = Scores({first: {0.0: 0.0, 2.0: 2.0}, second: {0.0: 1.0}})
    index = table(source, [0.0, 1.0])
    kernel = ScoreKernel(scores, width=2.0, kernel="linear").bind(index)
    # Scores 0, 1, 1, 1: W = max(0, 1 - |difference| / 2).
    one, half = 1.0, 0.5
    assert kernel.dense().tolist() == [[one, half, half, half]] + [[half, one, one, one]] * 3
    within = (ScoreKernel(scores, width=2.0, kernel="linear") * SameLabel("group")).bind(index).dense()
    assert within.tolist() == [[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    other = ScoreKernel(scores, width=2.0, kernel="linear").bind(index, index.take([1]))
    assert other.dense().tolist() == [[0.5], [1.0], [1.0], [1.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,time,score\na/0.mp4,0,1\n", r"a column 'seconds'; got columns \['video', 'time', 'score'\]"),
        ("video,seconds,score\na/0.mp4,0,high\n1.mp4,0,1\n", "line 2, column 'score': expected a number; got 'high'"),
        ("video,seconds,score\na/0.mp4,,1\n1.mp4,0,1\n", "line 2, column 'seconds': expected a number; got None"),
        ("video,seconds,score\n1.mp4,0,nan\n", "line 2, column 'score'"),
        ("video,seconds,score\na/0.mp4,0,1\n", "1 of 2 without, such as 'b/1.mp4'"),
        ("video,seconds,score\nz.mp4,0,1\n", r"videos such as 'a/0\.mp4'; got 1 others, the first in line 2: 'z\.mp4'"),
    ],
)
def test_scores_that_cannot_be_used(tmp_path, source, text, message):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_scores(tmp_path / "scores.csv", [source])


def test_scores_of_other_videos_are_left_alone_and_windows_keep_theirs(tmp_path, source):
    (tmp_path / "scores.jsonl").write_text(
        "\n".join(f'{{"video": "{name}", "seconds": 0, "score": {i}}}' for i, name in enumerate(["a/0.mp4", "1", "z"]))
    )
    scores = read_scores(tmp_path / "scores.jsonl", [source.windows(0.5)])
    assert scores(table(source, [1.0])).tolist() == [0.0, 1.0]
    with pytest.raises(InputError, match="'group'"):
        ScoreKernel(scores, width=1.0).bind(Index({"time": torch.zeros(2)}))


@pytest.mark.parametrize("modality", [None, "video"])
def test_the_manifest_of_the_page_on_video_opens(tmp_path, modality):
    for name in ("match", "final", "cup"):
        write(tmp_path / f"{name}.mp4", stamps=[40 * i for i in range(51)])
    page = Path(__file__).parents[2] / "docs" / "video.md"
    manifest = page.read_text().partition("path,start_seconds")[2].partition("```")[0]
    rows = [line for line in manifest.splitlines()[1:] if line]
    more = [line.replace("match", name) for name in ("final", "cup") for line in rows]
    (tmp_path / "list.csv").write_text("path,start_seconds" + manifest + "\n".join(more))
    train, test = (create_source(tmp_path / "list.csv", modality=modality, split=split) for split in ("train", "test"))
    assert (train.modality, len(train), len(test)) == ("video", 4, 2)
    assert train.columns["excitement"].tolist() == [1.5, 6.0] * 2
    assert train.facts["duration_seconds"].tolist() == [12.0, 8.0] * 2
    assert not set(train.facts["group"].tolist()) & set(test.facts["group"].tolist())


def test_columns_of_a_manifest_that_are_no_numbers(videos):
    (videos / "list.csv").write_text("path,title,excitement\na/0.mp4,x,1\nb/1.mp4,y,\n")
    source = create_source(videos / "list.csv", split="all")
    assert "column 'excitement' left out: 1 of its cells are no numbers, such as None" in source.describe()
    assert "title" not in source.describe()
    (videos / "list.csv").write_text('path,start_seconds,end_seconds\na/0.mp4,0,"1,5"\n')
    with pytest.raises(DataError, match=r"column 'end_seconds': expected a number; got '1,5' for 'a/0.mp4'"):
        create_source(videos / "list.csv", split="all")
