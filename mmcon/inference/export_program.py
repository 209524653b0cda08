"""Programs of an encoder with any batch size: torch.export (.pt2), and ONNX, which other runtimes execute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import tree_map
from mmcon.errors import InputError, MissingDependencyError, MmconError
from mmcon.inference.export_weights import Part, relative_difference
from mmcon.inference.programs import FILE, KEY, OUTPUT, ProgramEncoder, flat_views
from mmcon.models.audio import TransformersAudio
from mmcon.models.precomputed import PrecomputedFeatures

# A file of ONNX holds two gigabytes; larger weights are a file beside it.
_LARGEST_FILE = 1.8e9


def is_program(encoder: nn.Module) -> bool:
    """Whether an encoder can be a program: those with a feature extractor on the CPU in front cannot."""
    return not isinstance(encoder, TransformersAudio | PrecomputedFeatures | ProgramEncoder)


def write_torch_export(part: Part, folder: Path) -> tuple[str, float]:
    """Write a program of torch.export, and run it with two batch sizes."""
    file = folder / part.file
    with _trace_errors("torch.export"):
        torch.export.save(_traced(part), file, extra_files={FILE: part.about})
        loaded = torch.export.load(file).module()
    difference = max(relative_difference(loaded(views), expected) for views, expected in _cases(part))
    use = f'import torch\n\nprogram = torch.export.load("{part.file}").module()\nembeddings = program({_named(part)})'
    return use, difference


def write_onnx(part: Part, folder: Path) -> tuple[str, float]:
    """Write a program of ONNX, and run it in onnxruntime with two batch sizes.

    Raises:
        MissingDependencyError: its packages are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        expected, fix = "onnx, onnxscript and onnxruntime", 'pip install "mmcon[export]"'
        raise MissingDependencyError("export to onnx", expected=expected, got=str(error), fix=fix) from error
    names = list(flat_views(part.views))
    weights = sum(p.nbytes for p in _Program(part).state_dict().values())
    with _trace_errors("onnx"):
        program = torch.onnx.export(_traced(part), dynamo=True, verbose=False, input_names=names, output_names=[OUTPUT])
        assert program is not None
        program.rename_axes({program.model.graph.inputs[0].shape[0]: "batch"})  # type: ignore[index]
        program.model.metadata_props[KEY] = part.about
        program.save(folder / part.file, external_data=weights > _LARGEST_FILE)
    session = onnxruntime.InferenceSession(folder / part.file, providers=["CPUExecutionProvider"])
    difference = 0.0
    for views, expected in _cases(part):
        inputs = {name: tensor.cpu().numpy() for name, tensor in flat_views(views).items()}
        found = torch.from_numpy(session.run([OUTPUT], inputs)[0])
        difference = max(difference, relative_difference(found, expected.cpu()))
    fed = ", ".join(f'"{name}": {name}' for name in names)
    use = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{part.file}")\n'
    return use + f"(embeddings,) = session.run(None, {{{fed}}})", difference


@final
class _Program(nn.Module):
    """An encoder, the projection head of a space if there is one, and rows of length one if asked for."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.encoder, self.head, self.normalize = part.encoder, part.head, part.normalize

    def forward(self, views: Any) -> Float[Tensor, "n d"]:
        """Rows of views, stacked as the encoder takes them."""
        rows = self.encoder(views)
        if self.head is not None:
            rows = self.head(rows)
        return nn.functional.normalize(rows, dim=1) if self.normalize else rows


def _traced(part: Part) -> torch.export.ExportedProgram:
    rows = {0: torch.export.Dim("batch")}
    with _trace_errors("torch.export"), torch.no_grad():
        sizes = (tree_map(lambda _: rows, part.views),)  # type: ignore[arg-type,return-value]
        return torch.export.export(_Program(part).eval(), (part.views,), dynamic_shapes=sizes)


@contextmanager
def _trace_errors(what: str) -> Iterator[None]:
    """Without the notices of the exporter; a failure to trace is one error with its first line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MmconError:
        raise
    except Exception as error:  # the exporters raise errors of many kinds
        raise InputError(
            f"export by {what}",
            expected="an encoder that can be traced with any batch size",
            got=str(error).strip().partition("\n")[0] or type(error).__name__,
            fix="let its forward neither branch on values of tensors nor take len() of them",
        ) from error


def _cases(part: Part) -> list[tuple[Any, Float[Tensor, "n d"]]]:
    """The views of one input, and of all, each with the rows of the model."""
    with torch.no_grad():
        one = tree_map(lambda x: x[:1], part.views)
        return [(views, _Program(part).eval()(views)) for views in (one, part.views)]


def _named(part: Part) -> str:
    if not isinstance(part.views, Mapping):
        return "views"
    return "{" + ", ".join(f'"{name}": {name}' for name in part.views) + "}"
