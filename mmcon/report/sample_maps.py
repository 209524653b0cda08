"""Other ways to look at the test samples of a run: a map by UMAP, and a table for an explorer of embeddings."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from mmcon.errors import DataError, InputError, MissingDependencyError
from mmcon.files import replace_file

_SAMPLES, _VECTORS = "report/samples.json", "report/samples.safetensors"


def add_umap(folder: str | Path, *, neighbors: int = 15, seed: int = 0) -> None:
    """Add a map by UMAP (McInnes et al. 2018) to the samples of a run; the next page has it beside PCA.

    Args:
        folder: a run folder.
        neighbors: the size of the neighborhoods that the map preserves.
        seed: of UMAP's random state.

    Raises:
        MissingDependencyError: umap-learn is not installed.
        InputError: the run has no samples yet.
    """
    try:
        import umap  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            "mmcon report --umap", expected="umap-learn", got="none", fix='pip install "mmcon[umap]"'
        ) from error
    about, vectors = _read(folder)
    for name, maps in about["maps"].items():
        rows = vectors[name].astype("float32")
        # One thread, as UMAP requires for a fixed random state.
        made = umap.UMAP(n_neighbors=min(neighbors, len(rows) - 1), random_state=seed, n_jobs=1).fit_transform(rows)
        maps["UMAP"] = {"points": [[round(float(x), 3) for x in point] for point in made]}
    replace_file(Path(folder) / _SAMPLES, json.dumps(about, separators=(",", ":")))


def write_table(folder: str | Path, output: str | Path) -> Path:
    """Write the test samples of a run as a parquet table, which explorers such as embedding-atlas open.

    Columns: `name`, `label`, `guess` (the label of most neighbors), `modality`, `text`, `image` (bytes of a WebP file),
    `x` and `y` of the map after training, and `vector`, its principal components.

    Args:
        folder: a run folder.
        output: the file, `.parquet`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    about, vectors = _read(folder)
    rows, classes, after = about["samples"], about["classes"], about["after"]
    maps = about["maps"][after]
    points = maps.get("UMAP", maps["PCA"])["points"]

    def class_of(number: Any) -> str | None:
        return classes[number] if number is not None and 0 <= number < len(classes) else None

    def image_of(preview: dict[str, str]) -> dict[str, bytes] | None:
        _, _, content = preview.get("picture", "").partition("base64,")
        return {"bytes": base64.b64decode(content)} if content else None

    columns = {
        "name": [row["name"] for row in rows],
        "label": [class_of(row["label"]) for row in rows],
        "guess": [class_of(row.get("guess")) for row in rows],
        "modality": [about["modalities"][row["modality"]] for row in rows],
        "text": [row["preview"].get("text") for row in rows],
        "image": pa.array([image_of(row["preview"]) for row in rows], pa.struct({"bytes": pa.binary()})),
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "vector": vectors[after].astype("float32").tolist(),
    }
    try:
        pq.write_table(pa.table(columns), output)
    except OSError as error:
        raise InputError("mmcon report --table", expected="a .parquet file to write", got=str(error)) from error
    return Path(output)


def _read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The samples of a run, and their vectors by encoder."""
    path = Path(folder) / _SAMPLES
    if not path.exists():
        fix = "recipes write it at their end; a program of your own calls mmcon.evaluation.shown_samples.show_samples"
        raise InputError("mmcon report", expected="a run that has ended, with its samples", got=f"no {path}", fix=fix)
    try:
        return json.loads(path.read_text()), load_file(Path(folder) / _VECTORS)
    except (ValueError, OSError, SafetensorError) as error:
        raise DataError("mmcon report", expected=f"the samples of {folder}", got=str(error)) from error
