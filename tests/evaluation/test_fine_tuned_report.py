"""Full fine-tuning: it learns what frozen features lack, chooses its rate on training samples, and leaves the model."""

import copy

import pytest
import torch

import mmcon
from mmcon.errors import InputError
from mmcon.evaluation.evaluation_list import EvaluationInput
from mmcon.evaluation.features import extract_features
from mmcon.evaluation.fine_tuned_report import evaluate_fine_tuning
from mmcon.loading.loader import one_pass
from mmcon.sources.base import TensorSource

VIEW = mmcon.create_view("image/plain", size=8)


def pictures(n, seed):
    """Two classes of noise; the second is brighter in the upper half."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    values = torch.randint(0, 100, (n, 1, 8, 8), generator=g)
    values[labels == 1, :, :4] += 120
    return TensorSource(values.byte(), ids=1000 * seed + torch.arange(n), labels=labels, classes=["even", "upper"])


def given(encode, **options):
    train, test = pictures(64, 1), pictures(40, 2)
    features = [extract_features(encode, one_pass(source, {"image": [VIEW]})) for source in (train, test)]
    settings = {"fine_tuning_batch_size": 16, "fine_tuning_view": "image/plain", **options}
    return EvaluationInput(
        train=features[0],
        test=features[1],
        train_source=train,
        test_source=test,
        encode=encode,
        view=VIEW,
        modality="image",
        classes=train.classes,
        options=settings,
    )


def test_the_encoder_is_trained_in_a_copy_at_a_rate_chosen_on_training_samples():
    torch.manual_seed(0)
    encoder = mmcon.create_encoder("mmcon/resnet-tiny", image_size=8, in_channels=1, width=8)
    model = mmcon.ContrastiveModel({"image": encoder})
    before = copy.deepcopy(model.state_dict())
    result = evaluate_fine_tuning(given(model, fine_tuning_epochs=4, fine_tuning_rates=[1e-7, 3e-3]))
    assert result.settings["learning rate"] == 3e-3
    assert set(result.settings["held_out_top1"]) == {"1e-07", "0.003"}
    assert result.classification.top1 > 0.9
    assert len(result.labels) == 40
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rates_and_encoders_that_cannot_be_trained_are_refused():
    def encode(batch):
        return batch.views["image"][0].flatten(1)

    with pytest.raises(InputError, match="an encoder that is a module"):
        evaluate_fine_tuning(given(encode))
    model = mmcon.ContrastiveModel({"image": mmcon.create_encoder("mmcon/resnet-tiny", in_channels=1, width=8)})
    with pytest.raises(InputError, match="rates above 0"):
        evaluate_fine_tuning(given(model, fine_tuning_rates=[]))
