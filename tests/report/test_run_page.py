"""The page of a run: what it shows of any run folder, that it stands alone, and that writing it ends no run."""

import io
import json
import logging
import re
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import vl_convert
from made_run import ODD_NAMES, features_of, images, made_run
from markupsafe import escape
from PIL import Image

import mmcon
from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.shown_samples import save_samples
from mmcon.loading.loader import ViewLoader
from mmcon.report import run_page, vega
from mmcon.report.charts import POINTS, curves, map_chart
from mmcon.report.result_tables import class_shares, interval_rows, result_tables
from mmcon.report.run_files import PART_FILES, read_run
from mmcon.report.run_page import LivePage, context, write_report
from mmcon.report.sample_maps import add_umap, write_table
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import TensorSource
from mmcon.sources.text import TextSource
from mmcon.training.shown_views import VIEWS_FILE
from mmcon.views import describe_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture(scope="module")
def page(folder):
    return write_report(folder).read_text()


def test_the_page_has_what_the_folder_holds(page):
    parts = re.findall(r'<section id="([a-z-]+)"', page)
    assert parts == ["results", "curves", "views", "neighbors", "map", "confusion", "out-of-place", "run"]
    for text in ("0.800", "0.700 to 0.900", "--data &#39;my photos&#39;", "few &lt;images&gt;", "mmcon replay"):
        assert text in page, text


def test_names_of_the_run_are_text_and_nothing_else(page):
    """Classes, paths and settings with markup in them: no element, attribute or script comes from them."""
    for name in ODD_NAMES[:2]:
        assert name not in page
    assert "<b>tiny" not in page
    assert page.count("<script") == page.count("</script>") == 4  # two of data, Vega, and the page's own


def test_the_page_requests_nothing(page):
    """The policy in the page forbids requests and inline evaluation; addresses in attributes are data."""
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page).group(1)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    head, _, _ = page.partition('<script type="application/json"')
    addresses = re.findall(r'(?:src|href)="([^"]{0,20})', head)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)


def test_parts_that_are_missing_are_left_out(tmp_path):
    (tmp_path / "config.yaml").write_text("{}\n")
    text = write_report(tmp_path).read_text()
    assert re.findall(r'<section id="([a-z-]+)"', text) == ["run"]
    with pytest.raises(InputError, match=r"metrics\.jsonl or config\.yaml"):
        write_report(tmp_path / "elsewhere")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    (tmp_path / "results.json").write_text("[1")
    (tmp_path / "config.yaml").write_text("a: !!python/object:x {}\n")
    files = read_run(tmp_path)
    assert len(files.metrics) == 1
    assert not files.results
    assert not files.config
    assert len(files.problems) == 3
    assert all(name in " ".join(files.problems) for name in ("metrics.jsonl", "results.json", "config.yaml"))
    assert "results.json cannot be read" in write_report(tmp_path).read_text()


ODD_VALUES = {
    "metrics.jsonl": {"step": 1, "loss": [], "views_per_second": "fast"},
    "run.json": {"program": ["python"], "views": [3]},
    "results.json": {"warnings": 3},
    "quarantine.jsonl": {"file": {"a": []}},
    "report/views.json": {"samples": [{"views": []}]},
    "report/samples.json": {"samples": [{"label": "x"}], "maps": {"a": 3}, "modalities": ["image"], "classes": ["a"]},
}


def test_files_with_values_of_another_form_are_left_out_and_named(folder, tmp_path, caplog):
    """Of lines of a log only the odd values are left out. The configuration is as a run writes it, and stays."""
    run = shutil.copytree(folder, tmp_path / "run")
    for name, value in ODD_VALUES.items():
        (run / name).write_text(json.dumps(value) + "\n")
    page = write_report(run).read_text()
    for name in ("results.json", "report/views.json", "report/samples.json"):
        assert f"{name} has values of another form than a run writes" in page, name
        assert f"the run page leaves out a file: {name}" in caplog.text
    assert re.findall(r'<section id="([a-z-]+)"', page) == ["run"]
    assert "Configuration, 2 settings" in page
    assert "1 unreadable file<" in page


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"x"', "[" * 2_000])
def test_empty_and_cut_files_and_those_of_another_type_are_named(tmp_path, text):
    for name in PART_FILES.values():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    files = read_run(tmp_path)
    assert not any(getattr(files, part) for part in PART_FILES)
    told = " ".join(files.problems)
    expected = {"run.json", "results.json", "report/views.json", "report/samples.json"}
    expected |= {"metrics.jsonl", "quarantine.jsonl"} if text else set()  # an empty file has no lines
    expected |= {"config.yaml"} if text not in ("", "null", "[]") else set()  # and no settings
    assert {name for name in PART_FILES.values() if name in told} == expected
    page = write_report(tmp_path).read_text()
    assert all(str(escape(problem)) in page for problem in files.problems)


def test_evaluations_in_the_folder_are_on_the_page(tmp_path):
    (tmp_path / "config.yaml").write_text("{}\n")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "knn.txt").write_text("k-NN <top-1>  0.7\n")
    Image.new("RGB", (40, 30), "white").save(tmp_path / "evaluation" / "knn.png")
    (tmp_path / "evaluation" / "probe.txt").write_text("probe  0.8\n")
    (tmp_path / "evaluation" / "probe.png").write_bytes(b"no picture")
    text = write_report(tmp_path).read_text()
    assert "k-NN &lt;top-1&gt;  0.7" in text
    assert text.count('class="plotted"') == 1
    assert "the evaluation probe cannot be read" in text


# --- results and curves ----------------------------------------------------------------------------------------------


def test_baselines_are_columns_beside_the_trained_encoder():
    """The two ways in which recipes name a figure, linear_probe_top1 and linear_probe: top1, meet in one row."""
    shares = {"ant": 0.9, "bee": 0.8, "cat": 0.1, "cow": 0.6, "dog": 0.7, "emu": 1.0}
    results = {
        "linear_probe": {"top1": 0.9, "top5": 1.0},
        "linear_probe_top1_interval": [0.8, 0.95],
        "random_encoder": {"linear_probe_top1": 0.5},
        "linear_probe_top1_by_class": shares,
        "warnings": ["w"],
    }
    (table,) = result_tables(results)
    assert table.encoders == ["trained", "random encoder"]
    assert [(name, [cell and cell.value for cell in cells]) for name, cells in table.rows] == [
        ("linear probe top-1", [0.9, 0.5]),
        ("linear probe top-5", [1.0, None]),
    ]
    assert table.rows[0][1][0].interval == (0.8, 0.95)
    assert [row["encoder"] for row in interval_rows([table])] == ["trained", "random encoder"]
    assert class_shares(results) == shares


def test_encoders_under_kinds_of_views_are_tables():
    encoder = {"lag_correlation": 0.3, "order_accuracy": 0.7, "lag": 1.0, "by_clip": {"x": [1, 2]}, "slowness": [1.0]}
    results = {"plain": {"trained": encoder, "random": encoder}, "clips": 16}
    main, plain = result_tables(results)
    assert [name for name, _ in main.rows] == ["clips"]
    assert plain.title == "plain"
    assert plain.encoders == ["trained", "random"]
    assert len(plain.rows) == 3


def test_top_5_of_five_classes_is_no_figure():
    shares = dict.fromkeys("abcde", 0.6)
    results = {"knn": {"top1": 0.6, "top5": 1.0}, "probe_top1_by_class": shares}
    assert [name for name, _ in result_tables(results)[0].rows] == ["k-NN top-1"]
    results["probe_top1_by_class"] = shares | {"f": 0.6}
    assert [name for name, _ in result_tables(results)[0].rows] == ["k-NN top-1", "k-NN top-5"]


def test_every_number_of_the_log_is_in_a_chart():
    lines = [{"step": s, "epoch": 0, "loss": 1 / s, "loss/a/x>y": 2.0, "own_number": s, "text": "t", "zero": 0,
              "nan": float("nan"), "forward": 0.5, "waiting_for_data": 0.5} for s in range(1, 4)]  # fmt: skip
    titles = [chart.title for chart in curves(lines)]
    assert titles == ["Loss", "Where the time goes", "own number"]
    assert "total: 1 at first, 0.3333 at step 3" in curves(lines)[0].about
    assert curves(lines[:1]) == []  # a point is no curve


def test_long_logs_are_averaged_in_groups():
    (chart,) = curves([{"step": s, "loss": float(s)} for s in range(1, 10 * POINTS + 1)])
    rows = chart.spec["data"]["values"]
    assert len(rows) == POINTS
    assert rows[0] == {"step": 10, "s0": 5.5}


@pytest.mark.slow
def test_the_charts_are_valid_vega_lite(folder):
    specs = context(read_run(folder))["specs"]
    assert {"figures", "classes", "confusion", "map"} <= set(specs)
    for spec in specs.values():
        assert vl_convert.vegalite_to_vega({**spec, "width": 300})["marks"]


# --- samples and views -----------------------------------------------------------------------------------------------


def test_neighbors_votes_and_samples_out_of_place(tmp_path):
    """Five unit rows on a circle: three of class 0, two of class 1, of which one lies among those of class 0."""
    angles = torch.tensor([0.0, 0.1, 0.25, 0.12, 3.0])
    source = TensorSource(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), labels=[0, 0, 0, 1, 1], classes=("zero", "one"))
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    features = {"trained": {"image": features_of(source, rows)}, "random": {"image": features_of(source, rows.flip(0))}}
    about = json.loads(save_samples(tmp_path, source, features).read_text())
    near = about["neighbors"]["trained"]
    assert near["rows"][0] == [1, 3, 2, 4]
    assert near["cosines"][0][0] == pytest.approx(torch.cos(torch.tensor(0.1)).item(), abs=1e-3)
    # Each sample's votes are those of all but the farthest of the others: for row 3 the labels 0, 0, 0.
    assert about["samples"][3]["guess"] == 0
    assert about["samples"][3]["share"] == 1.0
    assert about["out_of_place"][0] == 3
    assert sum(count for _, _, count in about["confusion"]) == 5
    assert about["before"] == "random"
    assert len(about["maps"]["trained"]["PCA"]["points"]) == 5


def test_neighbors_of_two_modalities_are_of_the_other_one(tmp_path):
    pictures = TensorSource(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ids=torch.arange(3))
    texts = TextSource(["one", "two", "three"])
    texts.ids = torch.arange(3)
    both = mmcon.JoinedSource(pictures, texts)
    rows = torch.eye(3)
    of = {"image": features_of_ids(rows), "text": features_of_ids(rows.roll(1, 0))}
    about = json.loads(save_samples(tmp_path, both, {"trained": of}).read_text())
    assert about["modalities"] == ["image", "text"]
    assert about["samples"][3]["preview"] == {"text": "one"}
    assert [near[0] for near in about["neighbors"]["trained"]["rows"]] == [4, 5, 3, 2, 0, 1]


def test_neighbors_of_three_modalities_are_some_of_each_other_one(tmp_path):
    """Two samples of each; all other rows of a modality may be nearer than any of the third."""
    members = [
        TensorSource(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ids=torch.arange(2), modality=name)
        for name in ("image", "depth", "mask")
    ]
    rows = [torch.eye(4)[:2], torch.eye(4)[:2], torch.eye(4)[:2] + torch.eye(4)[2:] * 9]
    of = {member.modality: features_of_ids(part) for member, part in zip(members, rows, strict=True)}
    about = json.loads(save_samples(tmp_path, mmcon.JoinedSource(*members), {"trained": of}).read_text())
    near = about["neighbors"]["trained"]["rows"]
    assert [row[::2] for row in near[:2]] == [[2, 4], [3, 5]]  # rows 2 and 3 are depth, 4 and 5 masks
    assert near[4][::2] == [0, 2]


def features_of_ids(rows):
    return Features(rows, Index({"sample": torch.arange(len(rows))}))


def test_views_have_the_drawn_parameters(folder):
    """Those of the loader for the same step, since views are drawn by key."""
    saved = json.loads((folder / VIEWS_FILE).read_text())
    source, view = images(), mmcon.create_view("image/simclr", size=16)
    loader = ViewLoader(source, {"image": [view] * 2}, UniformSampler(source.ids, batch_size=4, seed=3), seed=3)
    batch = next(iter(loader))
    first = saved["samples"][0]
    assert saved["step"] == 1
    assert first["sample"] == int(batch.index["image"]["sample"][0])
    assert [shown["view"] for shown in first["views"]] == [0, 1]
    drawn = describe_sample(batch.params["image"][0], 0)
    assert f"{drawn['crop']['top']:.4g}" == dict(first["views"][0]["params"])["crop.top"]
    assert first["views"][0]["picture"].startswith("data:image/webp;base64,")


@pytest.mark.slow
def test_a_page_of_200_classes_stays_small(tmp_path):
    """50,000 samples are more than the 2,000 that are shown; noise is what compresses worst."""
    values = torch.randint(0, 256, (2_500, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classes = [f"class {i}" for i in range(200)]
    source = TensorSource(values, labels=torch.arange(2_500) % 200, classes=classes)
    assert write_report(made_run(tmp_path, source=source)).stat().st_size < 10_000_000
    assert len(map_chart(classes, "class", samples=500).spec["layer"]) == 2
    assert set(map_chart([], "class", samples=3).spec["layer"][0]["encoding"]) == {"x", "y"}  # no scale without values


# --- pages of runs at work -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cost", "pause"), [(1.0, 101), (0.01, 10)])
def test_pages_take_one_percent_of_the_time(tmp_path, monkeypatch, cost, pause):
    """A page that takes 1 s is written no more often than every 100 s; a quick one, every 10 s."""
    clock, written = [0.0], []

    def write(folder, running):
        written.append(clock[0])
        clock[0] += cost

    monkeypatch.setattr(run_page.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run_page, "script_is_ready", lambda: True)
    monkeypatch.setattr(run_page, "write_report", write)
    page = LivePage(tmp_path)
    while clock[0] < 500:
        clock[0] += 0.5
        page.refresh()
    assert written[0] == 10
    assert len(written) == pytest.approx(1 + 490 / pause, abs=1.5)


def test_without_the_charts_package_the_page_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(vega, "_PACKAGE", "no-such-package")
    vega.vega_script.cache_clear()
    (tmp_path / "config.yaml").write_text("{}\n")
    page = LivePage(tmp_path)
    page._next = 0
    page.refresh()
    vega.vega_script.cache_clear()
    assert "need the package vl-convert-python" in (tmp_path / "report.html").read_text()
    assert "the run page has no charts" in caplog.text


def test_a_page_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    page = LivePage(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        page.close()
        page.close()
    (record,) = caplog.records
    assert "report.html is not written" in record.message


# --- other maps and tables -------------------------------------------------------------------------------------------


def test_a_table_of_the_samples_for_explorers(folder, tmp_path):
    table = pq.read_table(write_table(folder, tmp_path / "samples.parquet")).to_pydict()
    assert table["label"][:4] == list(ODD_NAMES)
    assert len(table["x"]) == len(table["name"]) == 24
    with Image.open(io.BytesIO(table["image"][0]["bytes"])) as image:
        assert image.size == (16, 16)
    assert len({len(vector) for vector in table["vector"]}) == 1


def test_a_run_without_samples_has_no_table(tmp_path):
    with pytest.raises(InputError, match=r"with its samples(.|\n)*show_samples"):
        write_table(tmp_path, tmp_path / "samples.parquet")


def test_a_second_map(folder):
    pytest.importorskip("umap", reason="umap-learn is not installed")
    add_umap(folder)
    maps = context(read_run(folder))["samples"]["maps"]["trained encoder"]
    assert set(maps) == {"PCA", "UMAP"}
    assert len(maps["UMAP"]["points"]) == 24


def test_labels_of_neighbors_that_the_held_out_samples_lack_have_no_confusion():
    """Held-out recordings of other prompts than those of training: a neighbor's label has no name among theirs."""
    assert run_page._confusion({"confusion": [[0, 1, 3], [1, 1, 2]], "classes": ["a", "b"]}) is not None
    assert run_page._confusion({"confusion": [[0, 57, 1]], "classes": ["a", "b"]}) is None
    assert run_page._confusion({}) is None
