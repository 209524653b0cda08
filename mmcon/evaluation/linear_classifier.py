"""The linear classifier of published linear evaluations: trained with augmented views on a frozen encoder.

    stage = LinearStage(epochs=90, learning_rate=0.05 * batch_size / 256)
    classifier = train_classifier(model, loader, classes=1000, stage=stage)
    accuracy(classifier, test_loader)                # {"top1": …, "top5": …}

Each step encodes new views. The linear probe on cached features (`mmcon.evaluation.probe`) encodes each sample once and
is much cheaper; the accuracies of the two are not comparable.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mmcon.batch import ViewBatch
from mmcon.distributed.collectives import all_reduce_mean, get_rank
from mmcon.errors import ConfigError, DataError, InputError
from mmcon.models.evaluation_mode import evaluation_mode
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.progress import Progress

BatchNorm = Literal["frozen", "updated"]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class LinearStage:
    """Training settings of the classifier; the defaults are those of SupCon's ImageNet runs at batch size 256.

    Attributes:
        epochs: passes over the loader.
        learning_rate: peak learning rate; published rates are for batch size 256 and scale linearly with it.
        optimizer: "rmsprop", "lars", "sgd" or "adamw".
        optimizer_options: for the optimizer itself, such as {"eps": 1e-3}.
        schedule: learning-rate schedule; "exponential" multiplies the rate by `decay_factor` every `decay_epochs`.
        decay_factor: of "exponential".
        decay_epochs: of "exponential".
        warmup_epochs: epochs of linear warm-up.
        weight_decay: on the weights, not on the bias.
        label_smoothing: the probability of each target that is spread over all classes.
        unit_features: normalize features to length one before the classifier.
        batch_norm: the encoder's batch norms use the running statistics of stage one ("frozen"), or the statistics of
            the batch, and update the running ones ("updated").
        batch_norm_momentum: momentum of "updated".
        fine_tune: train a copy of the encoder too, in training mode, at the same learning rate (full fine-tuning).
    """

    epochs: int = 90
    learning_rate: float = 0.05
    optimizer: str = "rmsprop"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    schedule: str = "exponential"
    decay_factor: float = 0.97
    decay_epochs: float = 1.0
    warmup_epochs: float = 0.0
    weight_decay: float = 1e-6
    label_smoothing: float = 0.05
    unit_features: bool = True
    batch_norm: BatchNorm = "frozen"
    batch_norm_momentum: float = 0.1
    fine_tune: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 <= self.label_smoothing < 1 or not 0 < self.batch_norm_momentum <= 1:
            raise ConfigError(
                "LinearStage",
                expected="epochs >= 1, 0 <= label_smoothing < 1, 0 < batch_norm_momentum <= 1",
                got=f"{self.epochs}, {self.label_smoothing}, {self.batch_norm_momentum}",
            )
        if self.batch_norm not in ("frozen", "updated"):
            raise ConfigError("LinearStage", expected="batch_norm 'frozen' or 'updated'", got=repr(self.batch_norm))


@final
class LinearClassifier(nn.Module):
    """A frozen encoder, or one that is fine-tuned, and a linear layer on its features.

    Args:
        model: a ContrastiveModel (its heads are not used) or an encoder. The encoder is copied, so that updated
            batch-norm statistics do not change the model.
        modality: the modality of the views.
        classes: number of classes.
        unit_features: normalize features to length one.
        fine_tune: the encoder receives gradients.
    """

    def __init__(
        self, model: nn.Module, *, modality: str, classes: int, unit_features: bool, fine_tune: bool = False
    ) -> None:
        super().__init__()
        encoders = getattr(model, "encoders", None)
        known = encoders is None or modality in encoders
        encoder = model if encoders is None else encoders[modality] if known else None
        width = getattr(encoder, "feature_dim", None)
        if encoder is None or not isinstance(width, int):
            raise InputError(
                "LinearClassifier",
                expected=f"an encoder of {modality!r} with `feature_dim`",
                got=f"encoders of {sorted(encoders)}" if encoders is not None else type(model).__name__,
            )
        self.modality, self.unit_features, self.fine_tune = modality, unit_features, fine_tune
        self.encoder = copy.deepcopy(encoder).requires_grad_(fine_tune)
        self.linear = nn.Linear(width, classes)
        # As in MoCo's linear evaluation.
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: ViewBatch) -> Float[Tensor, "n classes"]:
        """Logits of every row of the batch, in order."""
        with torch.set_grad_enabled(self.fine_tune and torch.is_grad_enabled()):
            features = torch.cat([self.encoder(stack) for stack in batch.views[self.modality]]).float()
        if self.unit_features:
            features = functional.normalize(features, dim=1)
        return self.linear(features)


def train_classifier(
    model: nn.Module,
    loader: Iterable[ViewBatch],
    *,
    classes: int,
    stage: LinearStage,
    modality: str = "image",
    class_weights: Float[Tensor, " classes"] | None = None,
    device: torch.device | str | None = None,
) -> LinearClassifier:
    """Train a linear classifier with views on a frozen encoder.

    With several ranks, each passes the loader of its own shard, all start from one random state, and gradients are
    averaged. Updated batch norms use the rows of their own rank.

    Args:
        model: a ContrastiveModel or an encoder; it is not changed.
        loader: each iteration over it is an epoch of batches, with the views of this stage.
        classes: number of classes.
        stage: training settings.
        modality: the modality of the views.
        class_weights: weights of the loss, such as those of `mmcon.sources.base.class_weights` for long tails.
        device: device of the training; by default that of the model.
    """
    if not isinstance(loader, Sized) or not len(loader):
        raise InputError("train_classifier", expected="a loader of at least one batch", got=type(loader).__name__)
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    options: dict[str, Any] = {"unit_features": stage.unit_features, "fine_tune": stage.fine_tune}
    classifier = LinearClassifier(model, modality=modality, classes=classes, **options).to(device)
    _set_batch_norm(classifier.encoder, stage)
    trained = classifier if stage.fine_tune else classifier.linear
    optimizer = create_optimizer(
        trained,
        stage.optimizer,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        **stage.optimizer_options,
    )
    decay = {"factor": stage.decay_factor, "decay_steps": max(1, round(stage.decay_epochs * len(loader)))}
    schedule = create_schedule(
        optimizer,
        stage.schedule,
        steps=stage.epochs * len(loader),
        warmup_steps=round(stage.warmup_epochs * len(loader)),
        **(decay if stage.schedule == "exponential" else {}),
    )
    weight = None if class_weights is None else class_weights.to(device)
    shown: dict[str, Any] = {"epoch_length": len(loader), "enabled": get_rank() == 0}
    with Progress("linear classifier, step", stage.epochs * len(loader), **shown) as progress:
        for batch in (batch for _ in range(stage.epochs) for batch in loader):
            batch = batch.to(device)
            logits, labels = classifier(batch), _labels(batch, modality, classes)
            loss = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=stage.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _average_gradients(trained)
            optimizer.step()
            schedule.step()
            progress.advance(progress.done + 1, loss.detach())
    return classifier.eval()


def accuracy(classifier: LinearClassifier, loader: Iterable[ViewBatch]) -> dict[str, float]:
    """Top-1 and top-5 accuracy of a classifier, as fractions; without top-5 for five classes or fewer."""
    device = classifier.linear.weight.device
    classes = classifier.linear.out_features
    correct, count = torch.zeros(2, dtype=torch.float64), 0
    with evaluation_mode(classifier), torch.inference_mode():
        for batch in loader:
            batch = batch.to(device)
            labels = _labels(batch, classifier.modality, classes)
            hits = classifier(batch).topk(min(5, classes)).indices == labels[:, None]
            correct += torch.stack([hits[:, 0].sum(), hits.sum()]).cpu()
            count += len(labels)
    if not count:
        raise InputError("accuracy", expected="at least one row", got="an empty loader")
    top1, top5 = (correct / count).tolist()
    return {"top1": top1, "top5": top5} if classes > 5 else {"top1": top1}


def _set_batch_norm(encoder: nn.Module, stage: LinearStage) -> None:
    """Evaluation mode for a frozen encoder, except for its batch norms under "updated"."""
    encoder.train(stage.fine_tune)
    if stage.batch_norm == "updated":
        for module in encoder.modules():
            if isinstance(module, _NORMS):
                module.train()
                module.momentum = stage.batch_norm_momentum


def _average_gradients(module: nn.Module) -> None:
    parameters = [p for p in module.parameters() if p.grad is not None]
    for parameter, mean in zip(parameters, all_reduce_mean([p.grad for p in parameters]), strict=True):  # type: ignore[misc]
        parameter.grad = mean


def _labels(batch: ViewBatch, modality: str, classes: int) -> Int[Tensor, " n"]:
    labels = batch.index[modality]["label"]
    if int(labels.max()) >= classes:
        raise DataError("linear classifier", expected=f"labels below {classes}", got=str(int(labels.max())))
    return labels
