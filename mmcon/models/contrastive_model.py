"""The contrastive model: an encoder by modality, and a projection head by (modality, shared space).

encoder = create_encoder("resnet50")
model = ContrastiveModel(encoders={"image": encoder}, spaces={"shared": SharedSpace(dim=128)})
embeddings = model(batch)                      # in training: {"shared": {"image": unit rows `n d`}}
features = model.features(images, "image")     # before the head: the input of every evaluation
embeddings = model.embed(images, "image")      # after the head: {"shared": unit rows `n d`}
model.save_pretrained("run/model"); ContrastiveModel.from_pretrained("run/model")

`model(batch)` runs in the mode of the model and has gradients. `features` and `embed` run in evaluation mode, without
gradients, and restore the mode, so that a result depends neither on the other rows nor on earlier calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import ConfigError, InputError
from mmcon.models import saving
from mmcon.models.encoders import create_encoder
from mmcon.models.evaluation_mode import evaluation_mode
from mmcon.models.precomputed import PrecomputedFeatures
from mmcon.models.projection_heads import ProjectionHead
from mmcon.models.random_weights import restore_momentum
from mmcon.models.shared_spaces import SharedSpace
from mmcon.models.small_images import has_resnet_stem
from mmcon.models.view_stacks import encode_stacks, feature_width, split_by_view


@final
class ContrastiveModel(nn.Module):
    """Encoders by modality and projection heads by (modality, space).

    Args:
        encoders: by modality, a module with `feature_dim` from stacked views to features; or a sequence of encoders,
            one per view (as in CMC, for luminance and chrominance), each with its own heads.
        spaces: by name; by default one space, "shared", of width 128 with an MLP head. With {} the model has features
            alone.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module | Sequence[nn.Module]],
        spaces: Mapping[str, SharedSpace] | None = None,
    ) -> None:
        super().__init__()
        self.spaces = {"shared": SharedSpace()} if spaces is None else dict(spaces)
        # A tower is the encoder of a modality, "image", or of a (modality, view), "image:0" and "image:1".
        self.towers: dict[str, tuple[str, ...]] = {}
        self.encoders = nn.ModuleDict()
        for modality, encoder in encoders.items():
            by_tower = (
                {modality: encoder}
                if isinstance(encoder, nn.Module)
                else {f"{modality}:{view}": own for view, own in enumerate(encoder)}
            )
            self.towers[modality] = tuple(by_tower)
            for tower, own in by_tower.items():
                _check_encoder(tower, own)
                self.encoders[tower] = own
        self.heads = nn.ModuleDict({name: self._create_heads(name, space) for name, space in self.spaces.items()})

    def forward(self, batch: ViewBatch) -> dict[str, dict[str, Float[Tensor, "_ d"]]]:
        """Embeddings of the modalities of a batch, by space and modality: unit rows in the order of the index table."""
        embeddings: dict[str, dict[str, Tensor]] = {name: {} for name in self.spaces}
        for modality in batch.modalities:
            for name, rows in self._project(self._encode(batch, modality)).items():
                embeddings[name][modality] = rows
        return embeddings

    @overload
    def features(self, views: ViewBatch, modality: None = None) -> dict[str, Float[Tensor, "_ _f"]]: ...
    @overload
    def features(self, views: Any, modality: str | None = None) -> Float[Tensor, "n f"]: ...
    def features(self, views: Any, modality: str | None = None) -> Any:
        """Features of the encoders, before the projection heads, in the order of the rows; in evaluation mode.

        Args:
            views: a ViewBatch; stacked views (a tensor, or a dict of tensors); or a tuple of such stacks.
            modality: the modality of the views; with a ViewBatch, None returns a dict of all modalities.

        Returns:
            Rows without gradient, also for a model in training mode, whose mode is restored.
        """
        if isinstance(views, ViewBatch) and modality is None:
            return {name: self.features(views, name) for name in views.modalities}
        with evaluation_mode(self), torch.inference_mode():
            features = torch.cat([rows for _, rows in self._encode_any(views, modality)])
        return features.clone()  # autograd refuses inference tensors, and a probe may be trained on features

    def embed(self, views: Any, modality: str | None = None) -> dict[str, Float[Tensor, "n d"]]:
        """Embeddings of one modality by space: unit rows in the order of the rows; in evaluation mode.

        Args:
            views: as in `features`.
            modality: the modality of the views; optional if the model has one.

        Returns:
            By space with a head of this modality, rows without gradient.
        """
        with evaluation_mode(self), torch.inference_mode():
            embeddings = self._project(self._encode_any(views, modality))
        return {name: rows.clone() for name, rows in embeddings.items()}

    def modalities_by_space(self) -> dict[str, list[str]]:
        """By space, the modalities that have a projection head into it."""
        return {
            name: [modality for modality, towers in self.towers.items() if towers[0] in heads]  # type: ignore[operator]
            for name, heads in self.heads.items()
        }

    def with_precomputed_features(self) -> ContrastiveModel:
        """A model with the same heads on precomputed features, so that frozen encoders need to run only once.

        The two models share the parameters of the heads, so training one trains the other.
        """
        encoders = {
            modality: [PrecomputedFeatures(feature_width(self.encoders[tower])) for tower in towers]
            for modality, towers in self.towers.items()
        }
        model = ContrastiveModel({m: own if len(own) > 1 else own[0] for m, own in encoders.items()}, self.spaces)
        model.heads = self.heads
        return model

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `model.safetensors` and `config.json`, which `from_pretrained` loads."""
        config = {
            "encoders": saving.describe_encoders(self.encoders, Path(folder)),
            "modalities": {modality: list(towers) for modality, towers in self.towers.items()},
            "spaces": {name: asdict(space) for name, space in self.spaces.items()},
        }
        return saving.save_model(self, config, folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        encoders: Mapping[str, nn.Module | Sequence[nn.Module]] | None = None,
    ) -> ContrastiveModel:
        """Load a model in evaluation mode from a folder, or from a hub name and revision; `train()` it to go on.

        Args:
            name: a folder that `save_pretrained` wrote, or the name of such a model on the hub.
            revision: the revision of a hub name.
            encoders: new modules for encoders that were not built by name; the saved weights are loaded into them.

        Raises:
            CheckpointError: files are missing or truncated, or shapes differ; the message lists them.
        """
        folder = saving.local_folder(name, revision)
        config = saving.read_config(folder)
        model = cls(encoders or _create_encoders(config, folder), _create_spaces(config))
        saving.load_weights(model, folder)
        return model.eval()

    def _create_heads(self, name: str, space: SharedSpace) -> nn.ModuleDict:
        unknown = sorted(set(space.modalities or ()) - set(self.towers))
        if unknown:
            raise ConfigError(f"space {name!r}", expected=f"modalities among {sorted(self.towers)}", got=str(unknown))
        modalities = self.towers if space.modalities is None else space.modalities
        towers = [tower for modality in modalities for tower in self.towers[modality]]
        return nn.ModuleDict({t: ProjectionHead(feature_width(self.encoders[t]), space) for t in towers})

    def _towers_of(self, modality: str | None) -> tuple[str, ...]:
        if modality not in self.towers:
            raise InputError(
                "ContrastiveModel",
                expected=f"modalities among {sorted(self.towers)}",
                got=repr(modality),
                fix="ContrastiveModel(encoders={modality: encoder, ...})",
            )
        return self.towers[modality]

    def _project(self, features: list[tuple[str, Float[Tensor, "_ _f"]]]) -> dict[str, Float[Tensor, "n _d"]]:
        """Embeddings of the towers of one modality, by space with a head for it."""
        embeddings = {}
        for name, heads in self.heads.items():
            if features[0][0] in heads:  # type: ignore[operator]
                projected = [heads[tower](rows) for tower, rows in features]  # type: ignore[index]
                embeddings[name] = projected[0] if len(projected) == 1 else torch.cat(projected)
        return embeddings

    def _encode_any(self, views: Any, modality: str | None) -> list[tuple[str, Float[Tensor, "_ _f"]]]:
        """Features of a batch, or of stacked views, each with the name of its tower."""
        if modality is None and len(self.towers) == 1:
            modality = next(iter(self.towers))
        towers = self._towers_of(modality)
        if isinstance(views, ViewBatch):
            return self._encode(views, str(modality))
        stacks = views if isinstance(views, tuple) else (views,)
        if len(towers) == 1:
            return [(towers[0], encode_stacks(self.encoders[towers[0]], stacks))]
        if len(stacks) != len(towers):
            raise InputError(
                f"features of {modality!r}",
                expected=f"{len(towers)} stacks of views, one an encoder, or a ViewBatch",
                got=f"{len(stacks)}",
            )
        return [(t, encode_stacks(self.encoders[t], (stack,))) for t, stack in zip(towers, stacks, strict=True)]

    def _encode(self, batch: ViewBatch, modality: str) -> list[tuple[str, Float[Tensor, "_ _f"]]]:
        """Features in the order of the rows, each with the name of its tower (the encoder of a modality or view)."""
        towers = self._towers_of(modality)
        if len(towers) == 1:
            return [(towers[0], encode_stacks(self.encoders[towers[0]], batch.views[modality]))]
        features = []
        for view, stack in split_by_view(batch, modality):
            if view >= len(towers):
                raise InputError(
                    f"encoders of {modality!r}", expected=f"views below {len(towers)}, one an encoder", got=str(view)
                )
            features.append((towers[view], encode_stacks(self.encoders[towers[view]], (stack,))))
        return features


def _create_spaces(config: dict[str, Any]) -> dict[str, SharedSpace]:
    def create(options: dict[str, Any]) -> SharedSpace:
        modalities = options["modalities"]
        return SharedSpace(**{**options, "modalities": None if modalities is None else tuple(modalities)})

    return {name: create(options) for name, options in config["spaces"].items()}


def _create_encoders(config: dict[str, Any], folder: Path) -> dict[str, nn.Module | list[nn.Module]]:
    """Build the encoders of a saved model by name, without published weights; shared encoders are shared again."""
    encoders: dict[str, nn.Module] = {}
    for tower, made_from in config["encoders"].items():
        if isinstance(made_from, str):
            encoders[tower] = encoders[made_from]
        elif made_from is None:
            raise ConfigError(
                f"from_pretrained({str(folder)!r})",
                expected="encoders that were built by name",
                got=f"{tower!r}, which was not",
                fix=f"from_pretrained(..., encoders={{{tower.partition(':')[0]!r}: a new module of the same kind}})",
            )
        else:
            encoders[tower] = _create_encoder(made_from, folder)
    return {
        modality: encoders[modality] if towers == [modality] else [encoders[t] for t in towers]
        for modality, towers in config["modalities"].items()
    }


def _create_encoder(made_from: dict[str, Any], folder: Path) -> nn.Module:
    """The encoder that `create_encoder` built of these arguments, without published weights."""
    options: dict[str, Any] = {name: saving.inside_folder(value, folder) for name, value in made_from.items()}
    options["pretrained"] = False
    encoder: Any = create_encoder(**options)
    # A model that does not state it kept the resolution only if it had a ResNet's stem with random weights.
    stated, pretrained = made_from.get("small_images") is not None, made_from.get("pretrained")
    if encoder.made_from["small_images"] and not stated and (pretrained or not has_resnet_stem(encoder)):
        encoder = create_encoder(**{**options, "small_images": False})
    if pretrained:
        restore_momentum(encoder)
    return encoder


def _check_encoder(tower: str, encoder: Any) -> None:
    if not isinstance(encoder, nn.Module) or not isinstance(getattr(encoder, "feature_dim", None), int):
        raise ConfigError(
            f"encoder of {tower!r}",
            expected="a module with an attribute `feature_dim`, the width of its features",
            got=type(encoder).__name__,
            fix="build it with create_encoder, or set feature_dim on the module",
        )
    if "." in tower:
        raise ConfigError("ContrastiveModel", expected="names of modalities without a dot", got=repr(tower))
