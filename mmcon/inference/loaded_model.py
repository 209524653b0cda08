"""`mmcon.load`: a trained model that encodes files, arrays and texts as the evaluation of its training did.

    model = mmcon.load("runs/imagenet_supcon")                     # a run, a saved model, or a name on the hub
    embeddings = model.encode(["a.jpg", "b.png"])                  # n d, unit rows
    model.similarity(embeddings, embeddings)                       # cosines, n n
    model.classify("a.jpg").top(3)                                 # the probe that training left

A model of several modalities takes all of them by the same words; see `mmcon.inference.inputs` for the kinds of input.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import InputError, check_whole, nearest
from mmcon.evaluation.calibrated_probe import CalibratedProbe
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.view_rows import combine_views
from mmcon.inference.inputs import UnreadableWarning, check_modality, input_source
from mmcon.inference.predictions import Predictions, zero_shot_probabilities
from mmcon.inference.preprocessing import VERSION, Preprocessing
from mmcon.inference.programs import check_lengths
from mmcon.inference.row_format import checked_dim, formatted_rows
from mmcon.inference.sharing import HubModel
from mmcon.loading.loader import one_pass
from mmcon.models.contrastive_model import ContrastiveModel
from mmcon.models.view_stacks import feature_width
from mmcon.sources.base import Source
from mmcon.views import ViewGenerator

Rows = Float[Tensor, "n d"] | Float[np.ndarray, "n d"]
#: Of zero-shot classification by a model that was saved without one; CLIP's training begins with it.
TEMPERATURE = 0.07
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a drawing of {}")


@final
class LoadedModel(HubModel):
    """A model with its preprocessing, in evaluation mode.

    Args:
        model: the encoders and projection heads.
        preprocessing: by modality, how media become views.
        name: the path or the name that the model was loaded from.
        probes: by modality, the probe that training left.
        temperature: divides the cosines of zero-shot classification.

    Attributes:
        model: the `ContrastiveModel`.
        preprocessing: by modality, the plain views' names and options, and how media are decoded.
        probes: by modality, the linear probe of features.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        preprocessing: Mapping[str, Preprocessing],
        *,
        name: str = "",
        probes: Mapping[str, CalibratedProbe] | None = None,
        temperature: float = TEMPERATURE,
    ) -> None:
        self.model, self.preprocessing, self.name = model.eval(), dict(preprocessing), name
        self.probes, self.temperature = dict(probes or {}), temperature

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"LoadedModel({self.name!r}, modalities={self.modalities}, spaces={self.spaces}{classes})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the model encodes."""
        return tuple(self.model.towers)

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the shared spaces; none for an encoder without a projection head."""
        return tuple(self.model.spaces)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes that `classify` tells apart; None without a probe, or with several that differ."""
        found = {probe.classes for probe in self.probes.values()}
        return found.pop() if len(found) == 1 else None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and the preprocessing: embeddings of two fingerprints are not comparable."""
        digest = hashlib.sha256()
        preprocessing = {name: own.to_json() for name, own in sorted(self.preprocessing.items())}
        digest.update(json.dumps({"version": VERSION, "modalities": preprocessing}, sort_keys=True).encode())
        # Buffers too, since the mean and the deviation of images are not in the state dict.
        for name, tensor in sorted([*self.model.named_parameters(), *self.model.named_buffers()]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> LoadedModel:
        """Move the weights to a device.

        Raises:
            InputError: there is no such device.
        """
        self.model.to(checked_device(device))
        return self

    def views(self, modality: str) -> list[ViewGenerator]:
        """The evaluation views of a modality, which draw nothing at random that matters."""
        check_modality(modality, self.modalities)
        return self.preprocessing[modality].generators()

    def embedding_dim(self, modality: str, space: str | None = None, truncate_dim: int | None = None) -> int:
        """The width of the rows that `encode` returns.

        Raises:
            InputError: the model lacks the space, or has fewer dimensions than `truncate_dim`.
        """
        if space is not None:
            self._check_space(space, modality)
        towers = self.model.towers[modality]
        if space is not None:
            width = self.model.spaces[space].dim * len(towers)
        else:
            width = sum(feature_width(self.model.encoders[tower]) for tower in towers)
        return checked_dim(truncate_dim, width)

    def encode(
        self,
        inputs: Any,
        *,
        modality: str | None = None,
        batch_size: int = 64,
        space: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = True,
        show_progress: bool = True,
        num_workers: int = 0,
        output: Literal["torch", "numpy"] = "torch",
    ) -> Rows:
        """Rows of the inputs, in their order.

        >>> model.encode(["a.jpg", image, array])  # doctest: +SKIP

        Args:
            inputs: one input or several, or a source; the kinds are listed in `mmcon.inference.inputs`.
            modality: the modality; None: the only one of the model, or found from types and suffixes.
            batch_size: inputs that are encoded at once; the rows do not depend on it.
            space: the shared space whose embeddings are returned; None: the features before the projection heads.
            truncate_dim: keep this many leading dimensions, for models that were trained for it (Matryoshka).
            normalize: rows of length one.
            show_progress: show the progress of a long pass.
            num_workers: processes that read and decode the inputs.
            output: a tensor on the CPU, or a NumPy array.

        Returns:
            One row for each input that can be read, float32.

        Raises:
            InputError: the model lacks the modality or the space, or the inputs are of no known kind.
            DataError: no input can be read.

        Warns:
            UnreadableWarning: some inputs cannot be read; it has their positions, and they have no row.
        """
        if output not in ("torch", "numpy"):
            raise InputError("encode", expected="output 'torch' or 'numpy'", got=repr(output))
        source = self.source_of(inputs, modality)
        rows = self.encode_source(
            source,
            batch_size=batch_size,
            space=space,
            truncate_dim=truncate_dim,
            normalize=normalize,
            show_progress=show_progress,
            num_workers=num_workers,
        ).values
        return rows.numpy() if output == "numpy" else rows

    def source_of(self, inputs: Any, modality: str | None = None) -> Source:
        """The inputs of `encode` as a source of one modality of the model."""
        return input_source(inputs, modality, {name: own.media for name, own in self.preprocessing.items()})

    def encode_source(
        self,
        source: Source,
        *,
        modality: str | None = None,
        batch_size: int = 64,
        space: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = True,
        show_progress: bool = True,
        num_workers: int = 0,
    ) -> Features:
        """Rows of a source with the ids, the labels and the other columns of their samples; arguments as for `encode`.

        Returns:
            Features in the order of the source; its metadata name the model, the fingerprint, the modality and the
            space.
        """
        check_speed("encode", batch_size, num_workers)
        source = self.source_of(source, modality)
        modality = source.modality
        if space is not None:
            self._check_space(space, modality)
        own = self.preprocessing[modality]
        check_lengths(self.model.encoders[self.model.towers[modality][0]], normalize or space is not None)
        failures: dict[int, str] = {}
        loader = one_pass(
            source,
            {modality: own.generators()},
            batch_size=batch_size,
            workers=num_workers,
            device=self.device,
            failures=failures,
        )

        def encode(batch: ViewBatch) -> Float[Tensor, "_ _d"]:
            return self.encode_batch(batch, modality, space)

        features = extract_features(
            encode,
            loader,
            modality=modality,
            title="embeddings",
            total=len(source),
            show_progress=show_progress,
        )
        features = combine_views(features, views=len(own.views), how=own.combine)
        values = formatted_rows(features.values, truncate_dim, normalize)
        if failures:
            rows = {sample: row for row, sample in enumerate(source.ids.tolist())}
            reasons = {rows[sample]: f"{source.name_of(rows[sample])}: {why}" for sample, why in failures.items()}
            warnings.warn(UnreadableWarning(len(source), reasons), stacklevel=3)
        about = {"model": self.name, "fingerprint": self.fingerprint, "modality": modality, "space": space or ""}
        about |= {"normalized": str(normalize).lower(), "preprocessing": str(VERSION)}
        return Features(values, features.index, about)

    def encode_batch(self, batch: ViewBatch, modality: str, space: str | None = None) -> Float[Tensor, "_ _d"]:
        """Features, or embeddings in a space, of every view of a batch, in the order of its rows."""
        batch = batch.to(self.device)
        return self.model.features(batch, modality) if space is None else self.model.embed(batch, modality)[space]

    def similarity(
        self, a: Shaped[Tensor, "a d"] | Shaped[np.ndarray, "a d"], b: Shaped[Tensor, "b e"] | Shaped[np.ndarray, "b e"]
    ) -> Float[Tensor, "a b"]:
        """The cosine of every row of `a` with every row of `b`."""
        first, second = (torch.as_tensor(rows).float() for rows in (a, b))
        if first.shape[-1] != second.shape[-1] or first.dim() != 2 or second.dim() != 2:
            got = f"{tuple(first.shape)} and {tuple(second.shape)}"
            fix = "encode both with the same space and truncate_dim"
            raise InputError("similarity", expected="rows `a d` and `b d` of one width", got=got, fix=fix)
        return nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T

    def classify(
        self,
        inputs: Any,
        *,
        modality: str | None = None,
        classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        templates: Sequence[str] = TEMPLATES,
        space: str | None = None,
        temperature: float | None = None,
        **options: Any,
    ) -> Predictions:
        """The classes of the inputs with their probabilities: by the probe that training left, or by texts.

        Args:
            inputs: as for `encode`.
            modality: as for `encode`.
            classes: names for zero-shot classification, or by name the texts that stand for it; the model needs a text
                encoder in a space with the modality. None: the classes of the probe.
            templates: texts with {} for the name; a class is the mean of its prompts (Radford et al. 2021).
            space: of zero-shot classification; by default the one that has texts and the modality.
            temperature: divides the cosines of zero-shot classification; by default that at the end of the training.
            options: of `encode`: `batch_size`, `show_progress`, `num_workers`.

        Raises:
            InputError: the model has neither a probe of the modality nor, with `classes`, texts in one space with it.
        """
        source = self.source_of(inputs, modality)
        modality = source.modality
        if classes is None:
            if modality not in self.probes:
                expected = f"a model with a probe of {modality!r}"
                fix = "give names of classes, for a model with a text encoder, or train a recipe on labeled data"
                raise InputError("classify", expected=expected, got=f"probes of {sorted(self.probes)}", fix=fix)
            probe = self.probes[modality]
            features = self.encode_source(source, normalize=False, **options)
            return Predictions.of(source, features, probe.classes, probe.probabilities(features.values))
        space = space or self._text_space(modality)
        features = self.encode_source(source, space=space, **options)
        names = {name: [name] for name in classes} if not isinstance(classes, Mapping) else classes

        def embed(texts: list[str]) -> Float[Tensor, "_ _d"]:
            return self.encode_source(self.source_of(texts, "text"), space=space, show_progress=False).values

        divisor = self.temperature if temperature is None else temperature
        probabilities = zero_shot_probabilities(features.values, names, templates, embed, divisor)
        return Predictions.of(source, features, tuple(names), probabilities)

    def _text_space(self, modality: str) -> str:
        shared = [name for name, known in self.model.modalities_by_space().items() if {"text", modality} <= {*known}]
        if not shared:
            got = f"spaces of {self.model.modalities_by_space()}"
            fix = "train recipes/image_text.py or recipes/multimodal.py, or leave classes out for the probe"
            raise InputError("classify", expected=f"a space of texts and {modality!r}", got=got, fix=fix)
        return shared[0]

    def _check_space(self, space: str, modality: str) -> None:
        known = [name for name, modalities in self.model.modalities_by_space().items() if modality in modalities]
        if space not in known:
            fix = nearest(space, known) if known else "space=None gives the features"
            raise InputError("encode", expected=f"a space of {modality!r}", got=repr(space), fix=fix)


def check_speed(where: str, batch_size: int, workers: int) -> None:
    """Raise InputError unless a batch size and a number of worker processes are whole numbers, from 1 and from 0 on."""
    check_whole(where, "batch_size", batch_size, least=1)
    check_whole(where, "num_workers", workers, least=0, fix="0 (this process reads), or the number of cores to spare")


def checked_device(device: torch.device | str) -> torch.device:
    """A device on which tensors can be made.

    Raises:
        InputError: there is no such device.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # a name of no device; one that this machine or build lacks
        got = f"{str(device)!r} ({str(error).partition(chr(10))[0]})"
        raise InputError("device", expected="a device of this machine", got=got, fix="cpu, or cuda:0") from error
