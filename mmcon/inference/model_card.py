"""The card of a model: data with licenses, views, settings, seeds, figures with intervals, and how to repeat them.

A card is the README.md of a model on the hub. It is made of the run folder (config.yaml, run.json, results.json); a
model that was loaded without its run keeps the card that it came with.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import mmcon
from mmcon.report.result_tables import TRAINED, ResultTable, result_tables
from mmcon.report.run_files import RunFiles, read_run
from mmcon.sources import bundled
from mmcon.sources.hub import HUB_NOTE

if TYPE_CHECKING:
    from mmcon.inference.loaded_model import LoadedModel

CARD = "README.md"
#: The key of the metadata that has the format of an export.
EXPORT_KEY = "mmcon_export"
# The pipeline of the hub by modality.
_PIPELINES = {"image": "image-feature-extraction", "text": "sentence-similarity"}
_PLURALS = {"image": "images", "text": "texts", "audio": "sounds", "video": "videos"}
# The settings of config.yaml that a card has, in this order.
_SETTINGS = (
    "objective", "preset", "temperature", "learn_temperature", "loss_scale", "affinity", "queue_size",
    "encoder", "pretrained", "projection_head", "projection_dim", "view", "views", "mix", "sampler", "batch_size",
    "epochs", "max_steps", "optimizer", "learning_rate", "weight_decay", "schedule", "mixed_precision", "seed", "seeds",
)  # fmt: skip
# A bundled set within the description of a source.
_BUNDLED = re.compile(r"\bsamples/([a-z]+)")
# A data set of the hub within the description of a source.
_OF_HUB = re.compile(rf"{re.escape(HUB_NOTE)}([\w.-]+/[\w.-]+)")
# The folders of a path from the root, which may tell the name of a person; a folder may have spaces.
_NAME = r"[^\s/\\'\",:;|()](?:[^/\\'\",:;|()\n]*[^\s/\\'\",:;|()])?"
_ROOT = r"file:/+(?:[A-Za-z]:[\\/]+)?|(?<![\w./~-])(?:~/|/|\\\\+|[A-Za-z]:[\\/]+)"
_FOLDERS = re.compile(rf"(?:(?:{_ROOT})(?:{_NAME}[\\/]+)+|(?<![\w./~-])~\w+/(?:{_NAME}[\\/]+)*)(?={_NAME})")


def model_card(
    model: LoadedModel,
    *,
    license: str | None = None,
    name: str = "",
    use: str = "",
    notes: Sequence[str] = (),
    library: str = "mmcon",
    export: str = "",
) -> ModelCard:
    """The card of a loaded model.

    Args:
        model: the model; of a run, the card has its data, settings and figures.
        license: the license of the weights, an identifier of the hub such as "apache-2.0".
        name: the name on the hub, or a title; by default the folder of the run or of the model.
        use: Python code that loads and uses the model; by default that of mmcon.
        notes: sentences on what was exported.
        library: the library that loads the model.
        export: the format of an export.
    """
    run, folder = run_folder_of(model), _folder_of(model)
    if run is None and not export and folder is not None and (folder / CARD).is_file():
        card = ModelCard.load(folder / CARD)
        if license is not None:
            card.data.license = license  # type: ignore[attr-defined]
        return card
    files = RunFiles(Path()) if run is None else read_run(run)
    name = name or (run or folder or Path(model.name or "model")).name
    title, is_own = name.rpartition("/")[2], run is not None or bool(model.spaces)
    made = ", trained by contrastive learning with mmcon" if is_own else ""
    tables = result_tables(files.results)
    modality = model.modalities[0] if len(model.modalities) == 1 else ""
    data = ModelCardData(
        library_name=library,
        license=license,
        pipeline_tag=_PIPELINES.get(modality, "feature-extraction"),
        tags=["mmcon", *(["contrastive-learning"] if is_own else []), *model.modalities],
        datasets=_hub_data(files) or None,
        model_name=title,
        eval_results=_eval_results(files, tables, _PIPELINES.get(modality, "feature-extraction")) or None,
    )
    if export:
        data[EXPORT_KEY] = export
    sections = [
        f"# {title}",
        f"An encoder of {_listed([_PLURALS.get(of, of) for of in model.modalities])}{made}.",
        *notes,
        f"## Use\n\n```python\n{use or _usual_use(model, name if '/' in name else 'owner/name')}\n```",
        "## Model\n\n" + _table(("", ""), _model_rows(model)),
        *_training(files),
        *_figures(files, tables),
        *_repetition(files),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def run_folder_of(model: LoadedModel) -> Path | None:
    """The run whose model/ was loaded; None for a model without its run."""
    folder = _folder_of(model)
    if folder is None or folder.name != "model" or not (folder.parent / "config.yaml").is_file():
        return None
    return folder.parent


def _folder_of(model: LoadedModel) -> Path | None:
    folder = next(iter(model.preprocessing.values())).folder
    return None if folder == Path() else folder.absolute()


def _usual_use(model: LoadedModel, name: str) -> str:
    inputs = {
        "image": '["a.jpg", "b.jpg"]',
        "text": '["a text", "another"]',
        "audio": '["a.wav"]',
        "video": '["a.mp4"]',
    }
    space = f', space="{model.spaces[0]}"' if len(model.modalities) > 1 and model.spaces else ""
    lines = ["import mmcon", "", f'model = mmcon.load("{name}")  # of the hub, or a folder']
    for modality in model.modalities:
        named = f', modality="{modality}"' if len(model.modalities) > 1 else ""
        lines.append(f"embeddings = model.encode({inputs.get(modality, '[...]')}{named}{space})")
    return "\n".join(lines)


def _model_rows(model: LoadedModel) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for modality, towers in model.model.towers.items():
        made = [getattr(model.model.encoders[tower], "made_from", None) or {} for tower in towers]
        names = ", ".join(dict.fromkeys(str(of.get("name", "own module")) for of in made))
        rows.append((f"encoder of {modality}", f"{names}; features of width {model.embedding_dim(modality)}"))
        own = model.preprocessing[modality]
        rows.append((f"preprocessing of {modality}", f"{own.media or ''} " + "; ".join(map(str, own.views))))
    for space in model.spaces:
        kind = model.model.spaces[space]
        rows.append((f"space {space}", f"embeddings of width {kind.dim}, head {kind.head}"))
    for modality, probe in model.probes.items():
        rows.append((f"probe of {modality}", f"{len(probe.classes)} classes"))
    count = sum(p.numel() for p in model.model.parameters())
    return [*rows, ("parameters", f"{count:,}"), ("fingerprint", model.fingerprint[:16])]


def _training(files: RunFiles) -> list[str]:
    if not files.config and not files.about:
        return ["## Training\n\nThe card was made without the run folder, so it says nothing about the training."]
    data = [("data", files.about.get("source") or files.config.get("data") or "not recorded"), *_licenses(files)]
    settings = [(name, value) for name in _SETTINGS if (value := files.config.get(name)) not in (None, [], "")]
    views = [
        (f"views of {of.get('modality')}", f"`{_without_folders(str(of.get('made by', '')))}`")
        for of in files.about.get("views", [])
    ]
    sections = [
        "## Training data\n\n" + _table(("", ""), data),
        "## Training\n\n" + _table(("setting", "value"), settings),
    ]
    return [*sections, "## Views\n\n" + _table(("", "drawn by"), views)] if views else sections


def _licenses(files: RunFiles) -> list[tuple[str, str]]:
    """The licenses of the bundled sets that the run read; of other data, that none is recorded."""
    text = f"{files.about.get('source', '')} {files.config.get('data', '')}"
    found = [name for name in dict.fromkeys(_BUNDLED.findall(text)) if name in bundled.names()]
    if not found:
        return [("license of the data", "not recorded by the run: see where the data come from")]
    cards = {name: bundled.card(name) for name in found}
    return [(f"license of samples/{name}", f"{about['licence']}; {about['source']}") for name, about in cards.items()]


def _figures(files: RunFiles, tables: Sequence[ResultTable]) -> list[str]:
    if not tables:
        return []
    text = "Figures of held-out samples, with 95 % intervals over samples where they were computed."
    shown = [f"## Figures\n\n{text}"]
    for table in tables:
        rows = [(metric, *("" if cell is None else _cell_text(cell) for cell in cells)) for metric, cells in table.rows]
        title = f"### {table.title}\n\n" if table.title else ""
        shown.append(title + _table(("metric", *table.encoders), rows))
    remarks = files.results.get("warnings") or []
    return shown + (["\n".join(f"- {_inline(remark)}" for remark in remarks)] if remarks else [])


def _cell_text(cell: Any) -> str:
    return f"{cell} ({cell.ends})" if cell.ends else str(cell)


def _repetition(files: RunFiles) -> list[str]:
    words = [str(word) for word in files.about.get("program", [])]
    if not words:
        return []
    # Folders of the machine are left out: they tell nothing, or too much.
    command = shlex.join(["python", *(_without_folders(word) for word in words[1:])])
    seed, world = files.about.get("seed"), files.about.get("world_size", 1)
    versions = {**files.about.get("versions", {}), "mmcon (of this card)": mmcon.__version__}
    rows = [("seed", seed), ("processes", world), *versions.items()]
    text = f"## Repeat it\n\n```bash\n{command}\n```\n\n"
    return [text + "Views are functions of the seed: the same seed draws the same views.\n\n" + _table(("", ""), rows)]


def _eval_results(files: RunFiles, tables: Sequence[ResultTable], task: str) -> list[EvalResult]:
    """The figures of the trained encoder in the first table, for the metadata of the hub."""
    if not tables or TRAINED not in tables[0].encoders:
        return []
    column = tables[0].encoders.index(TRAINED)
    data = str(files.config.get("data") or "held-out data")
    if data not in _hub_data(files) and not _BUNDLED.match(data):  # a relative path would be a name on the hub
        data = PureWindowsPath(data).name  # takes both separators
    found = ((metric, cells[column]) for metric, cells in tables[0].rows)
    return [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            dataset_split="held out",
            metric_type=metric.replace(" ", "_"),
            metric_name=metric,
            metric_value=round(cell.value, 6),
        )
        for metric, cell in found
        if cell is not None and isinstance(cell.value, float)
    ]


def _hub_data(files: RunFiles) -> list[str]:
    """The data sets of the hub that the run was trained on, as their sources said: a folder may have the same name."""
    return list(dict.fromkeys(_OF_HUB.findall(str(files.about.get("source", "")))))


def _without_folders(text: str) -> str:
    """A text whose absolute paths are shortened to their last part."""
    return _FOLDERS.sub("", text)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_inline(cell) for cell in line) + " |" for line in lines)


def _inline(value: Any) -> str:
    """A value as the text of a cell: one line, and no character that ends the cell or begins an element."""
    text = " ".join(_without_folders(str(value)).split()).replace("|", "\\|")
    return text if text.startswith("`") else text.replace("<", "&lt;")
