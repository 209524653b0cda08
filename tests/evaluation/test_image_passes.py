"""Passes over the test images: decoded once, as the whole chain to the bit, in parts, and kept where interrupted."""

import math
from dataclasses import replace

import pytest
import torch

import mmcon
from mmcon.errors import DataError, InputError, MissingDependencyError, NonFiniteError
from mmcon.evaluation import image_passes as passes
from mmcon.evaluation.checked_splits import check_encoded
from mmcon.evaluation.evaluation_list import EvaluationInput
from mmcon.evaluation.features import extract_features
from mmcon.loading.loader import one_pass
from mmcon.sources.base import DatasetSource, TensorSource
from mmcon.views import Chain

VIEW = mmcon.create_view("image/plain", size=80)
CHANGES = {
    f"{name} {amount}": (name, mmcon.create_view("image/perturbation", kind=name, amount=amount))
    for name, amount in (("noise", 0.1), ("noise", 0.2), ("rotation", 9.0))
}


class Picture:
    """A picture of noise that counts how often it is decoded, or a file that cannot be read."""

    decoded = 0
    broken = ()

    def __init__(self, item, name):
        self.item, self.facts = item, {"channels": 3, "height": 90, "width": 70}

    def decode(self, region=(0, 0, 90, 70), size=None):
        if self.item in Picture.broken:
            raise DataError("test", expected="a picture", got="none")
        Picture.decoded += 1
        generator = torch.Generator().manual_seed(self.item)
        pixels = torch.randint(0, 256, (3, 90, 70), generator=generator, dtype=torch.uint8)
        top, left, height, width = region
        return pixels[:, top : top + height, left : left + width]


class Encoder:
    """Sums of rows as features; it counts the images that it encodes, and may be interrupted."""

    def __init__(self, fails_at=None):
        self.images, self.fails_at = 0, fails_at

    def __call__(self, batch):
        (views,) = batch.views["image"]
        self.images += len(views)
        if self.fails_at is not None and self.images > self.fails_at:
            raise KeyboardInterrupt
        return views.sum(3).flatten(1)


def pictures(broken=(4,)):
    Picture.broken, Picture.decoded = broken, 0
    return DatasetSource(list(range(9)), handle=Picture, labels=torch.arange(9) % 2, classes=["a", "b"])


def noise(n=9):
    values = torch.randint(0, 256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorSource(values, labels=torch.arange(n) % 2, classes=["a", "b"])


def given(source, view=VIEW, **settings):
    test = extract_features(Encoder(), one_pass(source, {"image": [view]}))
    shared = {"train": test, "test": test, "train_source": source, "test_source": source, "batch_size": 2}
    known = {"encode": Encoder(), "view": view, "modality": "image", "classes": source.classes}
    return EvaluationInput(**shared, **known, **settings)


def values(features):
    return {"values": features.values, "sample": features.index["sample"]}


@pytest.mark.parametrize("part", [1 << 29, 3 * 3 * 80 * 80])
def test_passes_are_those_of_the_whole_chain_with_each_picture_decoded_once(monkeypatch, part):
    monkeypatch.setattr(passes, "PART_BYTES", part)
    at = given(pictures())
    Picture.decoded = 0
    found = passes.image_passes(at, CHANGES, values, title="test")
    assert Picture.decoded == 8 + 1  # the first one also for the size of a part
    assert passes._as_bytes(at.first_view()).dtype == torch.uint8
    for title, change in CHANGES.items():
        assert torch.equal(found[title]["values"], at.features(at.test_source, Chain(VIEW, change)).values)
        assert found[title]["sample"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_images_that_bytes_would_round_are_floats():
    at = given(noise(), mmcon.create_view("image/plain", size=12))
    assert passes._as_bytes(at.first_view()).dtype == torch.float32
    found = passes.image_passes(at, CHANGES, values, title="test")
    for title, change in CHANGES.items():
        assert torch.equal(found[title]["values"], at.features(at.test_source, Chain(at.view, change)).values)


def test_parts_of_images_in_memory_are_sized_as_floats_though_the_first_is_black(monkeypatch, tmp_path):
    monkeypatch.setattr(passes, "PART_BYTES", 4 * 12 * 12 * 4)
    source = noise()
    source.values[0] = 0
    at = given(source, mmcon.create_view("image/plain", size=12), unfinished=tmp_path)
    assert passes._as_bytes(at.first_view()).dtype == torch.uint8
    passes.image_passes(at, CHANGES, values, title="test")
    assert len([*tmp_path.iterdir()]) == 3 * len(CHANGES)


def test_parts_do_not_keep_the_memory_that_workers_share():
    for views in (torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.3)):
        assert passes._as_bytes(views).data_ptr() != views.data_ptr()


def test_an_interrupted_call_goes_on_where_it_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(passes, "PART_BYTES", 4 * 3 * 80 * 80)
    at = given(pictures())
    whole = passes.image_passes(at, CHANGES, values, title="test")

    def again(fails_at):
        encoder = Encoder(fails_at)
        own = replace(at, encode=encoder, unfinished=tmp_path)
        return encoder, passes.image_passes(own, CHANGES, values, title="test")

    with pytest.raises(KeyboardInterrupt):
        again(fails_at=4 * 4 + 1)  # in the second pass over the second of two parts of four pictures
    assert len([*tmp_path.iterdir()]) == 4
    encoder, found = again(None)
    assert encoder.images == 2 * 4
    assert all(torch.equal(found[title]["values"], whole[title]["values"]) for title in CHANGES)
    Picture.decoded = 0
    assert again(None)[0].images == 0
    assert Picture.decoded == 1


def test_what_is_kept_is_computed_again_if_it_is_cut_off_or_of_other_images(tmp_path, caplog):
    def found(at):
        return passes.image_passes(replace(at, unfinished=tmp_path), CHANGES, values, title="test")

    at = given(pictures())
    first = found(at)
    file = min(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-4])
    again = found(at)
    assert all(torch.equal(again[title]["values"], first[title]["values"]) for title in CHANGES)
    assert f"{file} is cut off; it is computed again" in caplog.text
    other = found(given(pictures(broken=(5,))))  # as many, of which others can be read
    assert all(other[title]["sample"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8] for title in CHANGES)


def test_features_of_whole_sources_are_kept_too(tmp_path):
    at, title = given(noise(), unfinished=tmp_path / "a"), "features of ../near photos"
    assert torch.equal(at.features(at.test_source, title=title).values, at.test.values)
    own = replace(at, encode=Encoder(fails_at=0))
    assert torch.equal(own.features(at.test_source, title=title).values, at.test.values)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(KeyboardInterrupt):  # of other data
        own.features(noise(8), title=title)


def test_a_picture_that_cannot_be_read_any_more_is_named():
    at = given(pictures())
    Picture.broken = (4, 6)
    with pytest.raises(DataError, match=r"the 8 images .*1 that cannot be read any more, such as .*6"):
        passes.image_passes(at, CHANGES, values, title="test")


def test_the_first_view_is_of_the_first_picture_that_can_be_read():
    at = given(pictures(broken=(0, 1)))
    alone = next(one_pass(TensorSource(at.test_source.open([2])[0].decode()[None]), {"image": [VIEW]}))
    assert torch.equal(at.first_view(), alone.views["image"][0])


def test_what_a_model_cannot_encode_is_an_error_before_the_work():
    gray = mmcon.create_encoder("mmcon/resnet-tiny", image_size=80, in_channels=1, width=8)
    with pytest.raises(InputError, match=r"evaluate DatasetSource: .*c in \[1\]"):
        check_encoded(mmcon.ContrastiveModel({"image": gray}), pictures(broken=(0,)), [VIEW])

    def encode(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(InputError, match="samples that the model takes; got RuntimeError: mat1"):
        check_encoded(encode, pictures(), [VIEW])
    check_encoded(encode, pictures(broken=range(9)), [VIEW])  # the extraction names them


def test_what_a_model_cannot_encode_keeps_the_fix_of_its_error():
    def check(error):
        def encode(batch):
            if isinstance(error, Exception):
                raise error
            return batch.views["image"][0].flatten(1) * error

        check_encoded(encode, pictures(), [VIEW])

    with pytest.raises(MissingDependencyError, match=r"^timm: (.|\n)*Fix: pip install timm$"):
        check(MissingDependencyError("timm", expected="the package", got="none", fix="pip install timm"))
    with pytest.raises(NonFiniteError, match="finite features"):
        check(math.nan)
    with pytest.raises(InputError, match="Fix: use two channels"):
        check(InputError("model", expected="two channels", got="three", fix="use two channels"))
