"""Shares, overlap and variance of selections against counts made by hand and by sets."""

import csv
import io
import math

import numpy as np
import pytest

from peft_jax import models
from peft_jax.report import selection as report
from peft_jax.sites import LINEAR, is_head, sites


@pytest.mark.parametrize("name", ["vit_test", "swin_test", "convnext_test"])
def test_kernels_stand_in_the_order_in_which_the_model_runs_them(name):
  model = models.create(name, num_classes=3)
  table = sites(model, models.images(model))
  run = [f"{path}/kernel" for path, site in table.items()
         if issubclass(site.kind, LINEAR) and not is_head(path, "head")]
  assert sorted(reversed(run), key=report.order) == run


def test_blocks_past_the_ninth_and_stages_are_counted_in_run_order(shapes):
  header = {"shapes": shapes("vit_b16"), "counts": {}}
  assert list(report.blocks(header)) == [f"encoder/blocks_{i}" for i in range(12)]
  header = {"shapes": shapes("swin_b"), "counts": {}}
  depths = enumerate((2, 2, 18, 2))
  assert list(report.blocks(header)) == [
    f"stages_{s}/blocks_{b}" for s, depth in depths for b in range(depth)]


def test_the_mean_share_of_the_top_0_4m_of_a_vit_b16_is_0_470_percent(shapes):
  sizes = {path: math.prod(shape) for path, shape in shapes("vit_b16").items()}
  assert sum(sizes.values()) == 85_056_000  # the numbers that SPT chooses from
  ranked = np.random.default_rng(0).gamma(0.1, size=len(sizes))  # leaves of unequal sensitivity
  counts, left = {}, 400_000
  for path, weight in zip(sizes, ranked / ranked.sum(), strict=True):
    counts[path] = min(int(400_000 * weight), sizes[path], left)
    left -= counts[path]
  for path, size in sizes.items():
    more = min(left, size - counts[path])
    counts[path], left = counts[path] + more, left - more
  assert sum(counts.values()) == 400_000
  found = report.blocks({"shapes": shapes("vit_b16"), "counts": counts})
  assert {share.numbers for share in found.values()} == {7_087_872}
  percents = [share.percent for share in found.values()]
  outside = counts["norm/scale"] + counts["norm/bias"]
  expected = 100 * (400_000 - outside) / (12 * 7_087_872)
  assert np.ptp(percents) > 0.1 and np.mean(percents) == pytest.approx(expected, rel=1e-12)
  assert np.mean(percents) == pytest.approx(0.470, abs=0.002)


def test_operations_are_those_of_kernels_alone_and_count_all_blocks(shapes):
  sizes = shapes("vit_test")
  counts = {"encoder/blocks_0/attn/q/kernel": 5, "encoder/blocks_1/attn/q/kernel": 7,
            "encoder/blocks_1/attn/q/bias": 24, "norm/scale": 9,
            "encoder/blocks_1/mlp/fc2/kernel": 4}
  found = report.operations({"shapes": sizes, "counts": counts})
  assert list(found) == ["q", "k", "v", "proj", "fc1", "fc2"]
  assert found["q"] == (12, 2 * 24 * 24) and found["q"].percent == pytest.approx(100 * 12 / 1152)
  assert found["fc2"] == (4, 2 * 96 * 24) and found["k"].entries == 0
  assert report.blocks({"shapes": sizes, "counts": counts})["encoder/blocks_1"].entries == 35
  names = list(report.operations({"shapes": shapes("swin_b"), "counts": {}}))
  assert names == ["q", "k", "v", "proj", "fc1", "fc2", "downsample/reduction"]
  names = list(report.operations({"shapes": shapes("convnext_b"), "counts": {}}))
  assert names == ["dwconv", "fc1", "fc2", "downsample/conv"]
  whole = shapes("convnext_b") | {"stem/conv/kernel": [4, 4, 3, 128]}
  assert list(report.layers({"shapes": whole, "counts": {}}))[0] == "stem/conv/kernel"


def test_the_overlap_is_that_of_sets(selection):
  a = {"x": np.array([[0, 1], [2, 3]], np.int32), "y": np.array([7], np.int32)}
  b = {"x": np.array([1, 2, 9], np.int32), "z": np.array([7], np.int32)}
  assert report.overlap(a, b) == 2 / 7 and report.overlap(a, a) == 1
  assert report.overlap(a, {}) == 0 and math.isnan(report.overlap({}, {}))
  several = [selection(seed=s) for s in range(3)]
  matrix = report.overlaps(several)
  entries = [{(path, int(i)) for path, rows in s.places.items() for i in rows} for s in several]
  for i, j in np.ndindex(3, 3):
    assert matrix[i, j] == len(entries[i] & entries[j]) / len(entries[i] | entries[j])
  assert 0.01 < matrix[0, 1] < 0.2 and (matrix == matrix.T).all()


def test_the_overlap_of_modules_is_that_of_their_sites(selection, files):
  def of(*sites, seed=0):
    methods = [{"method": "spt"}, *([{"method": "lora", "sites": sites}] if sites else [])]
    return selection(methods=methods, seed=seed)

  several = [of("a", "b", "c"), of("b", "c", "d", seed=1), of(seed=2), of(seed=3)]
  matrix = report.module_overlaps(several)
  assert matrix[0, 1] == matrix[1, 0] == 0.5 and matrix[0, 2] == 0 and math.isnan(matrix[2, 3])
  table = report.tables(report.read(files(*several[:3])))["module_overlap"]
  np.testing.assert_array_equal([row[1:] for row in table.rows], matrix[:3, :3])
  assert "module_overlap" not in report.tables(report.read(files(*several[2:])))


def test_the_variance_is_over_tasks_and_a_mean_over_blocks(selection):
  def of(task, seed, first, second, **more):
    counts = {"encoder/blocks_0/attn/q/kernel": first, "encoder/blocks_1/attn/q/kernel": second}
    return selection(task=task, seed=seed, counts=counts, **more)

  size = report.blocks(of("a", 0, 0, 0).header)["encoder/blocks_0"].numbers
  tasks = [of("a", 0, 10, 0), of("a", 1, 30, 0), of("b", 0, 60, 8)]  # seeds first: a is 20, 0
  percent = 100 / size
  expected = ((40 * percent / 2) ** 2 + (8 * percent / 2) ** 2) / 2
  assert report.variances(tasks) == {"some.npz, spt": (2, pytest.approx(expected))}
  other = [of("a", 0, 1, 1, base="b" * 64), of("b", 0, 1, 1, base="b" * 64)]
  found = report.variances(tasks + other)
  assert found == {"some.npz, spt 1": (2, pytest.approx(expected)), "some.npz, spt 2": (2, 0)}
  assert report.variances(tasks[:2]) == {}
  gps = of("c", 0, 99, 0, method={"method": "gps"})  # another rule is no task more
  assert report.variances([*tasks, gps]) == report.variances(tasks)


def test_labels_say_no_more_than_tells_files_apart(selection):
  def labels(*several):
    return report.labels([f"{i}.st" for i in range(len(several))], [s.header for s in several])

  assert labels(selection(), selection(seed=1)) == ["mini_digits s0", "mini_digits s1"]
  gps = selection(method={"method": "gps"})
  assert labels(selection(), gps) == ["mini_digits s0 spt", "mini_digits s0 gps"]
  assert labels(selection(), selection(base_name="b")) == [
    "mini_digits s0 some.npz", "mini_digits s0 b"]
  assert labels(gps, gps) == ["mini_digits s0 0.st", "mini_digits s0 1.st"]


def test_tables_hold_what_the_functions_give_on_files(selection, files):
  one = selection()
  (path,) = files(one)
  tables = report.tables(report.read([path]))
  assert tables.keys() == {"blocks", "operations", "histogram"}
  found = {row[0]: row[1:] for row in tables["blocks"].rows}
  assert found == {name: (*s, s.percent) for name, s in report.blocks(one.header).items()}
  counts = dict(tables["histogram"].rows)
  assert counts == {path: rows.size for path, rows in one.places.items()
                    if path.endswith("kernel")}

  several = [one, selection(task="dtd"), selection(task="dtd", seed=2)]
  tables = report.tables(report.read(files(*several)))
  assert tables.keys() == {"blocks", "operations", "histogram", "overlap", "variance"}
  labels = ("mini_digits s0", "dtd s0", "dtd s2")
  assert tables["blocks"].columns == ("block", *labels)
  for s in several:
    assert tables["operations"].column(s.label) == [
      share.percent for share in report.operations(s.header).values()]
  matrix = np.array([row[1:] for row in tables["overlap"].rows])
  np.testing.assert_array_equal(matrix, report.overlaps(several))
  assert [row[:2] for row in tables["variance"].rows] == [("some.npz, spt", 2)]


def test_a_table_is_aligned_and_its_csv_has_all_digits(selection, files):
  table = report.tables(report.read(files(selection(), selection(seed=1))))["blocks"]
  title, *lines = str(table).splitlines()
  assert title == table.title and len({len(line) for line in lines}) == 1
  assert lines[1].split() == ["encoder/blocks_0", *(f"{x:.4g}" for x in table.rows[0][1:])]
  rows = list(csv.reader(io.StringIO(table.csv())))
  assert tuple(rows[0]) == table.columns
  assert [(row[0], *map(float, row[1:])) for row in rows[1:]] == list(table.rows)


def test_files_of_other_blocks_are_refused(selection, files):
  paths = files(selection(), selection("swin_test"))
  with pytest.raises(ValueError, match="1.safetensors is of swin_test, which has other blocks"):
    report.read(paths)
  with pytest.raises(ValueError, match="0.safetensors is given twice"):
    report.read([paths[0], paths[0]])
  none = selection(shapes={"norm/scale": [24]}, counts={})._replace(places={})
  with pytest.raises(ValueError, match="names no leaf of a block"):
    report.read(files(none))
