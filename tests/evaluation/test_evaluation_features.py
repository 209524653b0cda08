import pytest
import torch
from torch import nn

from mmcon.batch import Index, ViewBatch
from mmcon.errors import DataError, InputError, NonFiniteError
from mmcon.evaluation.features import Features, extract_features
from mmcon.models.evaluation_mode import evaluation_mode


def batches(n: int = 10, size: int = 4, **extra):
    images = torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for rows in torch.arange(n).split(size):
        index = Index({"sample": 100 + rows, "label": rows % 3})
        yield ViewBatch({"image": (images[rows],), **{k: (v[rows],) for k, v in extra.items()}},
                        {"image": index, **dict.fromkeys(extra, index)})  # fmt: skip


def pixels(batch: ViewBatch):
    return batch.views["image"][0].flatten(1)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 5))

    def forward(self, batch):
        return self.body(batch.views["image"][0])


def test_rows_stand_in_the_loaders_order_with_their_columns():
    features = extract_features(pixels, batches())
    assert features.values.shape == (10, 12)
    assert features.index["sample"].tolist() == list(range(100, 110))
    torch.testing.assert_close(features.values, torch.cat([pixels(b) for b in batches()]))


def test_evaluation_mode_holds_inside_and_each_part_is_put_back():
    encoder = Encoder()
    encoder.body[1].eval()  # a frozen normalisation stays frozen
    before = [part.training for part in encoder.modules()]
    statistics = encoder.body[1].running_mean.clone()
    features = extract_features(encoder, batches(), metadata={"model": "small"})
    assert [part.training for part in encoder.modules()] == before
    assert torch.equal(encoder.body[1].running_mean, statistics)
    encoder.eval()
    with torch.no_grad():
        expected = torch.cat([encoder(b) for b in batches()])
    torch.testing.assert_close(features.values, expected)
    assert features.metadata == {"model": "small"}


def test_modes_are_put_back_after_an_error():
    encoder = Encoder()

    def fail():
        with evaluation_mode(encoder):
            assert not encoder.training
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert encoder.training


def test_a_model_with_features_is_asked_for_them():
    class Model(Encoder):
        def features(self, batch):
            return {"image": pixels(batch) * 2}

    torch.testing.assert_close(
        extract_features(Model(), batches()).values, 2 * extract_features(pixels, batches()).values
    )


def test_gradients_can_flow_through_a_probe_on_features():
    features = extract_features(Encoder(), batches())
    weight = torch.zeros(5, requires_grad=True)
    (features.values @ weight).sum().backward()
    assert weight.grad is not None


def test_save_and_load_give_the_same(tmp_path):
    features = extract_features(pixels, batches(), metadata={"data": "noise"})
    back = Features.load(features.save(tmp_path / "dump" / "features.safetensors"))
    assert torch.equal(back.values, features.values)
    assert back.metadata == features.metadata
    assert {name: column.tolist() for name, column in back.index.items()} == {
        name: column.tolist() for name, column in features.index.items()
    }


def test_cat_of_parts_is_the_whole():
    whole = extract_features(pixels, batches())
    parts = Features.cat([whole.take(slice(0, 3)), whole.take(torch.arange(3, 10))])
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.labels, whole.labels)


def test_unit_rows_keep_zeros():
    features = Features(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), Index({"sample": torch.arange(2)}))
    torch.testing.assert_close(features.normalized(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="empty loader"):
        extract_features(pixels, [])
    with pytest.raises(InputError, match="'image', 'sound'"):
        extract_features(pixels, batches(sound=torch.zeros(10, 1)))
    with pytest.raises(InputError, match=r"features `n d` of 4 rows; got \(4, 3, 2, 2\)"):
        extract_features(lambda batch: batch.views["image"][0], batches())
    with pytest.raises(NonFiniteError, match="4 rows, first 100"):
        extract_features(lambda batch: pixels(batch) / 0, batches())
    (tmp_path / "torn").write_bytes(b"not a safetensors file")
    with pytest.raises(DataError, match="torn"):
        Features.load(tmp_path / "torn")
    with pytest.raises(InputError, match="2 rows"):
        Features(torch.zeros(2, 3), Index({"sample": torch.arange(3)}))


def test_the_progress_counts_samples_and_not_their_rows(monkeypatch):
    """A clip has a row for each of its frames."""
    done = []
    monkeypatch.setattr("mmcon.evaluation.features.Progress.advance", lambda self, count: done.append(count))
    frames = [Index({"sample": torch.arange(samples).repeat(3)}) for samples in (4, 2)]
    extract_features(pixels, [ViewBatch({"image": (torch.zeros(i.n, 3, 2, 2),)}, {"image": i}) for i in frames])
    assert done == [4, 6]
