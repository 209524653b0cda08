"""Programs that `mmcon export` wrote (ONNX, torch.export), as encoders of a loaded model.

A program holds as JSON what its reader needs: modality, space, width of the rows and preprocessing. So the
file alone is a model of `mmcon.load`, but for tokenizers, which are a folder beside it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmcon.batch import tree_map
from mmcon.errors import CheckpointError, InputError, MissingDependencyError
from mmcon.models.pretrained import model_load_errors

#: Formats of programs with their suffixes.
PROGRAMS = {"onnx": ".onnx", "torch-export": ".pt2"}
#: The key of the JSON in the metadata of ONNX, and its file in a .pt2.
KEY, FILE = "mmcon", "mmcon.json"
OUTPUT = "embeddings"
_WEIGHTS = "the model that the program was made of"


@final
class ProgramEncoder(nn.Module):
    """An encoder that runs a program. It has rows, but no gradients and no weights to train, save or export.

    Args:
        run: from stacked views to rows.
        about: the JSON of the program.
        digest: the SHA-256 of the file, which makes the fingerprint.
    """

    def __init__(self, run: Callable[[Any], Float[Tensor, "n d"]], about: Mapping[str, Any], digest: bytes) -> None:
        super().__init__()
        self._run, self.feature_dim, self.unit_rows = run, int(about["dim"]), bool(about["unit_rows"])
        self.digest = nn.Parameter(torch.frombuffer(bytearray(digest), dtype=torch.uint8), requires_grad=False)

    def forward(self, views: Any) -> Float[Tensor, "n d"]:
        """Rows of stacked views."""
        if torch.is_grad_enabled():
            _refuse("a pass with gradients")
        return self._run(views).to(self.digest.device)

    @property
    def made_from(self) -> NoReturn:
        """What builds the encoder again: nothing does."""
        _refuse("a copy of its weights")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        _refuse("a copy that is trained")


def check_lengths(encoder: nn.Module, normalize: bool) -> None:
    """Raise InputError if rows of other lengths than one are asked for, and the encoder is a program without them."""
    if not normalize and getattr(encoder, "unit_rows", False):
        fix = "normalize=True, or export with --no-normalize"
        raise InputError("exported program", expected="rows of length one", got="normalize=False", fix=fix)


def flat_views(views: Any, path: str = "") -> dict[str, Shaped[Tensor, "n ..."]]:
    """The tensors of stacked views by name; a tensor alone is `views`."""
    if isinstance(views, Mapping):
        found = [flat_views(value, f"{path}_{name}" if path else str(name)) for name, value in views.items()]
        return {name: tensor for part in found for name, tensor in part.items()}
    return {path or "views": views}


def open_program(file: Path) -> tuple[ProgramEncoder, dict[str, Any]]:
    """The encoder of a program, and its JSON.

    A .pt2 is opened by torch, whose loader may run what a file says: open only files of people who are trusted.

    Raises:
        CheckpointError: `mmcon export` did not write it.
        DataError: it cannot be opened.
        MissingDependencyError: of ONNX without onnxruntime.
    """
    with model_load_errors(f"load {str(file)!r}", expected="a program that mmcon export wrote", fix="export it again"):
        run, about = _open_onnx(file) if file.suffix == PROGRAMS["onnx"] else _open_torch(file)
        with file.open("rb") as opened:
            return ProgramEncoder(run, about, hashlib.file_digest(opened, "sha256").digest()), about


def program_about(file: Path) -> dict[str, Any]:
    """The JSON in a program, which is not run.

    Raises:
        CheckpointError: there is none.
    """
    try:
        if file.suffix == PROGRAMS["onnx"]:
            return json.loads(_session(file).get_modelmeta().custom_metadata_map[KEY])
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith(f"extra/{FILE}"))
            return json.loads(archive.read(name))
    except MissingDependencyError:
        raise
    except Exception as error:  # onnxruntime raises errors of its own kinds
        first_line = str(error).partition("\n")[0] or type(error).__name__
        expected, got = "a program that mmcon export wrote", f"another file ({first_line})"
        raise CheckpointError(f"program {str(file)!r}", expected=expected, got=got, fix="export it again") from error


def _session(file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        fix = 'pip install "mmcon[export]"'
        raise MissingDependencyError("a program of ONNX", expected="onnxruntime", got=str(error), fix=fix) from error
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def _open_onnx(file: Path) -> tuple[Callable[[Any], Float[Tensor, "n d"]], dict[str, Any]]:
    about, session = program_about(file), _session(file)

    def run(views: Any) -> Float[Tensor, "n d"]:
        inputs = {name: tensor.cpu().numpy() for name, tensor in flat_views(views).items()}
        return torch.from_numpy(session.run([OUTPUT], inputs)[0])

    return run, about


def _open_torch(file: Path) -> tuple[Callable[[Any], Float[Tensor, "n d"]], dict[str, Any]]:
    about = program_about(file)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        program = torch.export.load(file).module()
    device = next((tensor.device for tensor in (*program.parameters(), *program.buffers())), torch.device("cpu"))

    def run(views: Any) -> Float[Tensor, "n d"]:  # on the device that it was exported for
        return program(tree_map(lambda tensor: tensor.to(device), views))

    return run, about


def _refuse(what: str) -> NoReturn:
    raise InputError("exported program", expected="rows alone", got=what, fix=f"load {_WEIGHTS}")
