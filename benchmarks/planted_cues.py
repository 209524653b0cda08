"""Does contrastive training pick up spurious correlations? Cross-entropy, SupCon and SimCLR on images with cues.

    python benchmarks/planted_cues.py --cues color patch --seeds 0 1 2 --epochs 15

Each run trains the reference recipe on images whose cue goes with the label (`plant_cue`), and freezes the encoder.
Two linear probes of its features are tested where the cue is broken: one that was fitted to the training images as they
were ("biased"), and one that was fitted to the same images with broken cues ("fair"), which shows what the features
still hold of the class. Finished runs are not repeated. Prints a table with the mean over seeds and Student's 95 %
interval.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import mmcon
from mmcon.evaluation.cues import plant_cue
from mmcon.evaluation.features import extract_features
from mmcon.evaluation.probe import fit_probe
from mmcon.evaluation.statistics import t_interval
from mmcon.loading.loader import one_pass
from mmcon.registry import register_source
from mmcon.sources.base import Source, Subset

RECIPE = Path(__file__).parents[1] / "recipes" / "imagenet_supcon.py"
OBJECTIVES = ("cross-entropy", "supcon", "simclr")


def load_recipe() -> Any:
    spec = importlib.util.spec_from_file_location("reference_recipe", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def plain_source(data: str, split: str, samples: int | None) -> Source:
    source = mmcon.create_source(data, split=split)
    return source if samples is None else Subset(source, range(min(samples, len(source))))


def register_planted(options: argparse.Namespace, cue: str) -> str:
    """A source whose training split has the cue of the class, and whose test split has a broken one."""
    name = f"planted/{cue}"

    @register_source(name, modality="image")
    def planted(split: str = "train") -> Source:
        """Images with a planted cue."""
        source = plain_source(options.data, split, options.samples)
        return plant_cue(source, cue, correlation=options.correlation if split == "train" else None)  # type: ignore[arg-type]

    return name


def features_of(model: mmcon.ContrastiveModel, source: Source, size: int) -> Any:
    views = {"image": [mmcon.create_view("image/plain", size=size)]}
    return extract_features(model, one_pass(source, views), modality="image")


def measure(options: argparse.Namespace, folder: Path, cue: str) -> dict[str, float]:
    """Accuracies of both probes on broken cues, and of the biased one on cues as in training."""
    model = mmcon.ContrastiveModel.from_pretrained(folder / "model")
    train, test = (plain_source(options.data, split, options.samples) for split in ("train", "test"))
    planted = {
        "biased": plant_cue(train, cue, correlation=options.correlation),  # type: ignore[arg-type]
        "fair": plant_cue(train, cue, correlation=None),  # type: ignore[arg-type]
    }
    tests = (plant_cue(test, cue, correlation=c) for c in (None, options.correlation))  # type: ignore[arg-type]
    broken, aligned = (features_of(model, source, options.size) for source in tests)
    probes = {name: fit_probe(features_of(model, source, options.size)) for name, source in planted.items()}
    follows = probes["biased"].evaluate(broken).predicted == broken.index["cue"]
    return {
        "biased, cue as in training": probes["biased"].evaluate(aligned).top1,
        "biased, cue broken": probes["biased"].evaluate(broken).top1,
        "follows a conflicting cue": float(follows[broken.index["cue"] != broken.labels].double().mean()),
        "fair, cue broken": probes["fair"].evaluate(broken).top1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="samples/fashion")
    parser.add_argument("--samples", type=int, help="the first samples of each split; default: all")
    parser.add_argument("--size", type=int, default=28, help="the side of the views in pixels")
    parser.add_argument("--cues", nargs="+", default=["color", "patch"], choices=["color", "patch"])
    parser.add_argument("--correlation", type=float, default=0.95)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--view", default="image/simclr")
    parser.add_argument("--output", type=Path, default=Path("runs/planted_cues"))
    options = parser.parse_args()
    recipe, rows = load_recipe(), {}
    for cue in options.cues:
        name = register_planted(options, cue)
        for objective in OBJECTIVES:
            found: dict[str, list[float]] = {}
            for seed in options.seeds:
                folder = options.output / f"{cue}-{objective}-{seed}"
                if not (folder / "cues.json").exists():
                    settings = {"epochs": options.epochs, "batch_size": options.batch_size, "view": options.view}
                    recipe.main(
                        recipe.Config(
                            data=name,
                            objective=objective,
                            seed=seed,
                            output_dir=folder,
                            image_size=options.size,
                            resume=True,
                            **settings,
                        )
                    )
                    (folder / "cues.json").write_text(json.dumps(measure(options, folder, cue)))
                for figure, value in json.loads((folder / "cues.json").read_text()).items():
                    found.setdefault(figure, []).append(value)
            rows[cue, objective] = found
    figures = list(next(iter(rows.values())))
    print(f"\n| cue | objective | {' | '.join(figures)} |\n|---|---|{'---|' * len(figures)}")
    for (cue, objective), found in rows.items():
        cells = [str(t_interval(v)) if len(v) > 1 else f"{v[0]:.3f}" for v in found.values()]
        print(f"| {cue} | {objective} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
