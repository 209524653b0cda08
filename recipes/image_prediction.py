r"""Learning of images from targets, without negatives: BYOL, SimSiam, or distillation from a frozen teacher.

    uv run accelerate launch recipes/image_prediction.py                                # BYOL on bundled emoji
    uv run accelerate launch recipes/image_prediction.py --objective simsiam
    uv run accelerate launch recipes/image_prediction.py --objective regression --teacher timm/vit_small_patch16_224
    uv run accelerate launch recipes/image_prediction.py --objective similarity --teacher runs/large/model \
        --data path/to/photos --encoder timm/mobilenetv3_small_100

In BYOL and SimSiam each view predicts the embedding of the other view; a predictor and targets without gradient keep
embeddings apart. In a distillation the targets come from a teacher, which sees every image once, without augmentation:
its features (regression), or its similarities of the images of a batch (similarity).

After Grill et al. 2020 (BYOL), Chen and He 2021 (SimSiam), Navaneet et al. 2021 (SimReg: regression of features) and
Abbasi Koohpayegani et al. 2020 (CompRess: similarities, here between the images of a batch).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import mmcon
from mmcon.errors import ConfigError
from mmcon.evaluation import second_stage
from mmcon.inference.distillation import with_teacher
from mmcon.losses import presets
from mmcon.models.ema import MomentumEncoder
from mmcon.models.predictor import Predictor
from mmcon.objective.without_negatives import FeatureRegression, Prediction
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source, channels_of
from mmcon.training.config import ImageRunConfig
from mmcon.training.logging import QUARANTINE
from mmcon.training.optim import create_optimizer_and_schedule

DISTILLATION = ("similarity", "regression")


@dataclass(frozen=True, kw_only=True)
class Config(ImageRunConfig):
    """What to train, on what, and for how long."""

    data: str = "samples/emoji"
    """bundled drawings (samples/emoji); a folder with one sub-folder per class, tar shards, parquet files, a manifest,
    or a hub name"""
    objective: Literal["byol", "simsiam", "similarity", "regression"] = "byol"
    teacher: str | None = None
    """similarity and regression: the frozen encoder: timm/NAME, a run, a saved model, a hub name, or a local folder"""
    teacher_temperature: float = 0.05
    """similarity: of the softmax over the teacher's similarities, the targets"""
    temperature: float = 0.05
    """similarity: of the student's softmax"""
    encoder: str = "mmcon/resnet-tiny"
    """encoder by name: mmcon/resnet-tiny, resnet50, timm/NAME, owner/model of a hub, or a local folder"""
    view: str = "image/simclr"
    """view generator by name; `mmcon views` lists them"""
    crop_area: float = 0.3
    """smallest fraction of an image that a crop keeps"""
    predictor_dim: int = 256
    """width of the predictor's hidden layer"""
    momentum: float = 0.99
    """BYOL: of the momentum encoder at first; it rises to 1"""
    epochs: int = 40
    projection_head: Literal["linear", "mlp", "mlp-batch-norm"] | None = "mlp-batch-norm"
    tuned_rate: ClassVar[float] = 2e-3


def main(config: Config) -> None:
    """Train, then evaluate."""
    if (config.objective in DISTILLATION) != (config.teacher is not None):
        raise ConfigError(
            f"--objective {config.objective}",
            expected="--teacher NAME" if config.objective in DISTILLATION else "no --teacher",
            got=str(config.teacher),
            fix=f"--teacher goes with --objective {' or '.join(DISTILLATION)}",
        )
    config = config.apply_tiny(max_steps=6)
    run = mmcon.Run.from_config(config, name=f"image_{config.objective}")

    # Data: two views of an image, and of a teacher its features of the whole image.
    train, test = config.open_splits(quarantine=run.folder / QUARANTINE, tiny_step=8)
    train = config.labeled_subset(train)
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    view = mmcon.create_view(config.view, size=config.side, area=(config.crop_area, 1.0))
    sampled = train
    if config.teacher:
        sampled = with_teacher(train, mmcon.load(config.teacher, device=run.device), num_workers=config.workers or 0)
    config = config.fit_batch_size(len(sampled), run.print, ranks=run.world_size)
    sampler = UniformSampler(sampled.ids, batch_size=config.batch_size, seed=config.seed)
    loader = run.loader(sampled, {"image": [view, view]}, sampler)

    # Model: an encoder and a projection head; for BYOL and SimSiam a predictor after it.
    encoder = mmcon.create_encoder(config.encoder, image_size=config.side, in_channels=channels_of(train))
    space = config.shared_space(encoder)
    if config.objective == "regression":
        space = replace(space, dim=sampled.columns["teacher"].shape[1])
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": space})
    untrained = copy.deepcopy(model)
    network = model if config.teacher else Predictor(model, hidden_dim=config.predictor_dim)
    objective = make_objective(config)
    optimizer, schedule = create_optimizer_and_schedule(config, [network, objective], steps_per_epoch=len(loader))
    momentum = None
    if config.objective == "byol":
        updates = math.ceil(config.epochs * len(loader) / config.accumulate)
        momentum = MomentumEncoder(network, momentum=config.momentum, total_steps=updates)
    state = {"momentum": momentum} if momentum else {}
    trained = run.prepare(network, optimizer, schedule, objective=objective, **state)

    # Stage one.
    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch, momentum(batch)) if momentum else objective(embeddings, batch)
        if run.step(loss) and momentum:
            momentum.update(trained)

    # Stage two: features once, then every metric from them.
    model = run.full_model(model)
    plain = {"image": [mmcon.create_view("image/plain", size=config.side)]}
    if run.is_main:
        mmcon.inference.save_model(model, run.folder / "model", views=plain, source=train)
    encoders: dict[str, Any] = {"trained encoder": (model, plain), "random encoder": (untrained, plain)}
    features = second_stage.extract_all(run, encoders, train, test)
    if not run.is_main:
        return run.close()
    evaluate(run, features, test)


def make_objective(config: Config) -> Any:
    """The loss of the objective, with its published weight."""
    if config.objective == "similarity":
        temperatures = {"temperature": config.temperature, "side_temperature": config.teacher_temperature}
        return mmcon.Objective(**presets.x_clr(features="teacher", **temperatures), truncate=config.truncate_dims)
    if config.objective == "regression":
        return FeatureRegression(target="teacher")
    return Prediction(weight=2.0 if config.objective == "byol" else 0.5)


def evaluate(run: mmcon.Run, features: Any, test: Source) -> None:
    """Print the metrics and write them."""
    metrics = second_stage.evaluate_all(features, model_folder=run.folder / "model", classes=test.classes)
    run.print(second_stage.metrics_table(metrics, len(test)))
    run.finish(second_stage.metrics_json(metrics, test.classes))


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
