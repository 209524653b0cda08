"""Shared spaces: each modality has an encoder, each (modality, space) pair a projection head.

encoder = create_encoder("resnet50")
model = ContrastiveModel(encoders={"image": encoder}, spaces={"shared": SharedSpace(dim=128)})
embeddings = model(batch)                      # {"shared": {"image": unit rows `n d`}}
features = model.features(images, "image")     # what the second stage reads: no head
model.save_pretrained("run/model"); ContrastiveModel.from_pretrained("run/model")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmcon.batch import ViewBatch, rows_of
from mmcon.errors import ConfigError, InputError
from mmcon.models import saving
from mmcon.models.encoders import PrecomputedFeatures, create_encoder

Embeddings = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class SharedSpace:
    """A space in which embeddings of several modalities are compared.

    Attributes:
        dim: its width.
        head: the projection from features: "linear", or "mlp" (one hidden layer, ReLU).
        hidden_dim: the width of the hidden layer; by default that of the features.
        unit_features: whether features are brought to length one before the head, as SupCon's ImageNet runs do.
        modalities: which modalities have a head here; None: all.
    """

    dim: int = 128
    head: Literal["linear", "mlp"] = "mlp"
    hidden_dim: int | None = None
    unit_features: bool = False
    modalities: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dim < 1 or self.head not in ("linear", "mlp"):
            raise ConfigError(
                "SharedSpace", expected="dim >= 1 and head 'linear' or 'mlp'", got=f"dim={self.dim}, head={self.head!r}"
            )


@final
class ProjectionHead(nn.Module):
    """From features to unit embeddings of a space; the second stage drops it."""

    def __init__(self, feature_dim: int, space: SharedSpace) -> None:
        super().__init__()
        self.unit_features = space.unit_features
        hidden = space.hidden_dim or feature_dim
        self.layers = (
            nn.Linear(feature_dim, space.dim)
            if space.head == "linear"
            else nn.Sequential(nn.Linear(feature_dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, space.dim))
        )

    def forward(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        """Unit rows."""
        if self.unit_features:
            features = functional.normalize(features, dim=1)
        # At least float32: under bfloat16 rows of length one are so only to three digits.
        projected = self.layers(features)
        return functional.normalize(projected.float() if projected.dtype.itemsize < 4 else projected, dim=1)


@final
class ContrastiveModel(nn.Module):
    """Encoders by modality and projection heads by (modality, space).

    Args:
        encoders: by modality, a module with `feature_dim` from a part of a batch to features; or a sequence of
            encoders, one for each view (as CMC has for luminance and chrominance), each with heads of its own.
        spaces: by name; by default one space, "shared", of width 128 with an MLP head.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module | Sequence[nn.Module]],
        spaces: Mapping[str, SharedSpace] | None = None,
    ) -> None:
        super().__init__()
        self.spaces = dict(spaces or {"shared": SharedSpace()})
        # A tower is an encoder in its place: "image", or "image:0", "image:1" where each view has its own.
        self.towers: dict[str, tuple[str, ...]] = {}
        self.encoders = nn.ModuleDict()
        for modality, given in encoders.items():
            several = [given] if isinstance(given, nn.Module) else list(given)
            self.towers[modality] = (
                (modality,) if isinstance(given, nn.Module) else tuple(f"{modality}:{i}" for i in range(len(several)))
            )
            for tower, encoder in zip(self.towers[modality], several, strict=True):
                _check_encoder(tower, encoder)
                self.encoders[tower] = encoder
        self.heads = nn.ModuleDict({name: self._heads(name, space) for name, space in self.spaces.items()})

    def _heads(self, name: str, space: SharedSpace) -> nn.ModuleDict:
        unknown = sorted(set(space.modalities or ()) - set(self.towers))
        if unknown:
            raise ConfigError(f"space {name!r}", expected=f"modalities among {sorted(self.towers)}", got=str(unknown))
        chosen = self.towers if space.modalities is None else space.modalities
        towers = [tower for modality in chosen for tower in self.towers[modality]]
        return nn.ModuleDict({t: ProjectionHead(_width(self.encoders[t]), space) for t in towers})

    def modalities_by_space(self) -> dict[str, list[str]]:
        """By space, the modalities that have a head there."""
        return {
            name: [modality for modality, towers in self.towers.items() if towers[0] in heads]  # type: ignore[operator]
            for name, heads in self.heads.items()
        }

    def with_precomputed_features(self) -> ContrastiveModel:
        """The same heads over features that were computed before: where towers are frozen they need run only once.

        The heads are shared with this model, so that what they learn is learned here.
        """
        given = {
            modality: [PrecomputedFeatures(_width(self.encoders[tower])) for tower in towers]
            for modality, towers in self.towers.items()
        }
        model = ContrastiveModel({m: e if len(e) > 1 else e[0] for m, e in given.items()}, self.spaces)
        model.heads = self.heads
        return model

    def forward(self, batch: ViewBatch) -> Embeddings:
        """Embeddings by space and modality, unit rows `n d` in the order of the batch's index.

        A modality that is not in the batch is not in the result.
        """
        embeddings: Embeddings = {name: {} for name in self.spaces}
        for modality in batch.modalities:
            pieces = self._encode(batch, modality)
            for name, heads in self.heads.items():
                if self.towers[modality][0] in heads:  # type: ignore[operator]
                    projected = [heads[tower](features) for tower, features in pieces]  # type: ignore[index]
                    embeddings[name][modality] = projected[0] if len(projected) == 1 else torch.cat(projected)
        return embeddings

    def features(self, views: Any, modality: str | None = None) -> Any:
        """What encoders say, before any head: `n f`, rows in order.

        Args:
            views: a ViewBatch, a part (a tensor, or a dict of tensors), or a tuple of parts.
            modality: whose views; of a ViewBatch, None gives a dict of all.
        """
        if isinstance(views, ViewBatch):
            if modality is None:
                return {name: self.features(views, name) for name in views.modalities}
            return torch.cat([features for _, features in self._encode(views, modality)])
        if modality is None and len(self.towers) == 1:
            modality = next(iter(self.towers))
        towers = self._towers_of(modality)
        parts = views if isinstance(views, tuple) else (views,)
        if len(towers) > 1 and len(parts) != len(towers):
            raise InputError(
                f"features of {modality!r}",
                expected=f"{len(towers)} parts, one for each view's encoder, or a ViewBatch",
                got=f"{len(parts)}",
            )
        if len(towers) == 1:
            return _encode_parts(self.encoders[towers[0]], parts)
        return torch.cat([_encode_parts(self.encoders[t], (p,)) for t, p in zip(towers, parts, strict=True)])

    def _towers_of(self, modality: str | None) -> tuple[str, ...]:
        if modality not in self.towers:
            raise InputError(
                "ContrastiveModel",
                expected=f"modalities among {sorted(self.towers)}",
                got=repr(modality),
                fix="ContrastiveModel(encoders={modality: encoder, ...})",
            )
        return self.towers[modality]

    def _encode(self, batch: ViewBatch, modality: str) -> list[tuple[str, Tensor]]:
        """Features by tower, in the order of rows."""
        towers, parts = self._towers_of(modality), batch.views[modality]
        if len(towers) == 1:
            return [(towers[0], _encode_parts(self.encoders[towers[0]], parts))]
        pieces, start = [], 0
        for part in parts:
            n = rows_of(part)
            views, counts = torch.unique_consecutive(
                batch.index[modality]["view"][start : start + n], return_counts=True
            )
            start += n
            for view, rows in zip(views.tolist(), _split(part, counts.tolist()), strict=True):
                if view >= len(towers):
                    raise InputError(
                        f"encoders of {modality!r}",
                        expected=f"views below {len(towers)}, one an encoder",
                        got=str(view),
                    )
                pieces.append((towers[view], _encode_parts(self.encoders[towers[view]], (rows,))))
        return pieces

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `model.safetensors` and `config.json`, from which `from_pretrained` makes the model again."""
        config = {
            "encoders": saving.describe_encoders(self.encoders),
            "modalities": {modality: list(towers) for modality, towers in self.towers.items()},
            "spaces": {name: asdict(space) for name, space in self.spaces.items()},
        }
        return saving.write(self, config, folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        encoders: Mapping[str, nn.Module | Sequence[nn.Module]] | None = None,
    ) -> ContrastiveModel:
        """Make a model again from a folder, or from a hub name and revision.

        Args:
            name: what `save_pretrained` wrote, here or on a hub.
            revision: of a hub name.
            encoders: for encoders that were not made by name: freshly built ones, to be filled.

        Raises:
            CheckpointError: files are missing or torn, or shapes differ; the message lists which.
        """
        folder = saving.locate(name, revision)
        config = saving.read_config(folder)
        model = cls(encoders or _rebuild(config, folder), _spaces(config))
        saving.load(model, folder)
        return model


def _spaces(config: dict[str, Any]) -> dict[str, SharedSpace]:
    def build(options: dict[str, Any]) -> SharedSpace:
        named = options["modalities"]
        return SharedSpace(**{**options, "modalities": None if named is None else tuple(named)})

    return {name: build(options) for name, options in config["spaces"].items()}


def _rebuild(config: dict[str, Any], folder: Path) -> dict[str, nn.Module | list[nn.Module]]:
    """Encoders by modality from their names, without published weights; one that stood in two places does again."""
    built: dict[str, nn.Module] = {}
    for tower, made_from in config["encoders"].items():
        if isinstance(made_from, str):
            built[tower] = built[made_from]
        elif made_from is None:
            raise ConfigError(
                f"from_pretrained({str(folder)!r})",
                expected="encoders that were made by name",
                got=f"{tower!r}, which was not",
                fix=f"from_pretrained(..., encoders={{{tower.partition(':')[0]!r}: a new module of the same kind}})",
            )
        else:
            built[tower] = create_encoder(**{**made_from, "pretrained": False})
    return {
        modality: built[modality] if towers == [modality] else [built[t] for t in towers]
        for modality, towers in config["modalities"].items()
    }


def _check_encoder(tower: str, encoder: Any) -> None:
    if not isinstance(encoder, nn.Module) or not isinstance(getattr(encoder, "feature_dim", None), int):
        raise ConfigError(
            f"encoder of {tower!r}",
            expected="a module with an attribute `feature_dim`, the width of its features",
            got=type(encoder).__name__,
            fix="make it with create_encoder, or set feature_dim on the module",
        )
    if "." in tower:
        raise ConfigError("ContrastiveModel", expected="names of modalities without a dot", got=repr(tower))


def _width(encoder: nn.Module) -> int:
    width = encoder.feature_dim
    assert isinstance(width, int)
    return width


def _encode_parts(encoder: nn.Module, parts: tuple[Any, ...]) -> Tensor:
    """Features of parts, in order; neighbours of one shape go through together: faster, and one batch's statistics."""
    groups: list[list[Any]] = []
    for part in parts:
        if groups and _signature(groups[-1][0]) == _signature(part):
            groups[-1].append(part)
        else:
            groups.append([part])
    features = [encoder(_cat(group)) for group in groups]
    for group, block in zip(groups, features, strict=True):
        rows = sum(map(rows_of, group))
        if block.shape != (rows, _width(encoder)):
            raise InputError(
                type(encoder).__name__,
                expected=f"features of shape {(rows, _width(encoder))}",
                got=str(tuple(block.shape)),
                fix="pool to one vector a row, and let `feature_dim` be its width",
            )
    return features[0] if len(features) == 1 else torch.cat(features)


def _signature(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.shape[1:], part.dtype
    if isinstance(part, Mapping):
        return {name: _signature(branch) for name, branch in part.items()}
    return None


def _cat(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Mapping):
        return {name: _cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


def _split(part: Any, counts: list[int]) -> list[Any]:
    if isinstance(part, Mapping):
        columns = {name: _split(branch, counts) for name, branch in part.items()}
        return [{name: pieces[i] for name, pieces in columns.items()} for i in range(len(counts))]
    return list(torch.split(part, counts))
