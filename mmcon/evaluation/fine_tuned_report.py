"""The report of full fine-tuning: a classifier on the encoder, all of whose weights are trained with labels.

The learning rate is chosen on a fifth of the training samples; then all of them train. The model itself is not changed.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.evaluation.classification_report import ClassificationResult, classification_report
from mmcon.evaluation.evaluation_list import EvaluationInput, number_option
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.linear_classifier import LinearClassifier, LinearStage, train_classifier
from mmcon.evaluation.probe import held_out_samples
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.registry import create_view, supported_options
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source, Subset
from mmcon.training.seeds import seed_model

RATES = (1e-4, 1e-3)


def evaluate_fine_tuning(given: EvaluationInput) -> ClassificationResult:
    """The report of the fine-tuned encoder, trained by AdamW with a cosine schedule.

    Options: `fine_tuning_epochs` (10), `fine_tuning_rates` (1e-4 and 1e-3; one rate is used as it is),
    `fine_tuning_view`, the views of training ("image/crop-flip"), and `fine_tuning_batch_size` (64).

    Raises:
        InputError: the encoder is not a module, there is no rate, or there are fewer samples than a batch has.
    """
    if not isinstance(given.encode, nn.Module):
        raise InputError("fine-tuning", expected="an encoder that is a module", got=type(given.encode).__name__)
    rates = given.options.get("fine_tuning_rates", RATES)
    asked = rates if isinstance(rates, list | tuple) else [rates]
    name = "fine_tuning_rates"
    rates = sorted(number_option({name: rate}, name, 0.0, lowest=0) for rate in asked)
    if not rates or rates[0] <= 0:
        raise InputError("fine-tuning", expected="learning rates above 0", got=str(rates))
    accuracies: dict[str, float] = {}
    chosen = rates[0]
    if len(rates) > 1:
        train = given.train_source
        out = held_out_samples(train.ids, share=0.2, seed=given.seed)
        kept, tried = (Subset(train, mask.nonzero()[:, 0]) for mask in (~out, out))
        for rate in rates:
            logits = _logits(_train(given, kept, rate), given, tried)
            accuracies[f"{rate:g}"] = (logits.values.argmax(1) == logits.labels).double().mean().item()
        chosen = max(rates, key=lambda rate: accuracies[f"{rate:g}"])
    logits = _logits(_train(given, given.train_source, chosen), given, given.test_source)
    settings = {"learning rate": chosen, "held_out_top1": accuracies}
    named: dict[str, Any] = {"names": given.classes, "title": "fine-tuned", "settings": settings}
    return classification_report(logits.values.softmax(1), logits, torch.arange(len(given.classes)), **named)


def _train(given: EvaluationInput, source: Source, rate: float) -> LinearClassifier:
    """A classifier whose encoder is trained too, on augmented views of a source."""
    side = given.first_view().shape[-1]
    name = str(given.options.get("fine_tuning_view", "image/crop-flip"))
    wanted = {"size": side, "area": (0.5 if side <= 64 else 0.08, 1.0)}
    view = create_view(name, **supported_options("view", name, wanted))
    batch_size = min(number_option(given.options, "fine_tuning_batch_size", 64, lowest=1), len(source))
    assert source.labels is not None
    sampler = UniformSampler(source.labels, batch_size=batch_size, seed=given.seed)
    speed: dict[str, Any] = {"workers": given.workers, "device": given.device}
    loader = ViewLoader(source, {given.modality: [view]}, sampler, seed=given.seed, **speed)
    stage = LinearStage(
        epochs=number_option(given.options, "fine_tuning_epochs", 10, lowest=1), learning_rate=rate, optimizer="adamw",
        schedule="cosine", warmup_epochs=0.5, weight_decay=1e-4, label_smoothing=0.0, unit_features=False,
        fine_tune=True,
    )  # fmt: skip
    seed_model(given.seed, "fine-tuning")
    of_model: dict[str, Any] = {"classes": len(given.classes), "modality": given.modality, "device": given.device}
    return train_classifier(given.encode, loader, stage=stage, **of_model)  # pyright: ignore[reportArgumentType]


def _logits(classifier: LinearClassifier, given: EvaluationInput, source: Source) -> Features:
    """The logits of every sample of a source."""

    def encode(batch: Any) -> Float[Tensor, "_n _k"]:
        return classifier(batch)

    loader = one_pass(source, {given.modality: [given.view]}, batch_size=given.batch_size, device=given.device)
    return extract_features(encode, loader, modality=given.modality, device=given.device, title="fine-tuned, held out")
