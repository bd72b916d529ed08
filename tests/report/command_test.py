"""python -m peft_jax select and report: what they write and print, and what they refuse."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from peft_jax import __main__ as cli
from peft_jax import data
from peft_jax.report import domain, figures
from peft_jax.report import selection as report
from peft_jax.selection import file as selection_file
from peft_jax.train import loop

CONFIG = """
from peft_jax.train import config as config_lib

def get_config(argument=""):
  given = config_lib.parse_argument(argument, {"task": "mini_digits", "methods": "gps"})
  config = config_lib.default().unlock()
  config.task, config.methods = given["task"], (given["methods"],)
  config.model.name = "vit_test"
  config.weights = "BACKBONE"
  config.batch_size = 40
  return config.lock()
"""


def run(capsys, *argv):
  """(exit code, stdout, stderr) of one command."""
  try:
    code = cli.main([str(word) for word in argv])
  except SystemExit as stopped:
    code = stopped.code
  return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, backbone):
  path = tmp_path_factory.mktemp("configs") / "test.py"
  path.write_text(CONFIG.replace("BACKBONE", backbone))
  return str(path)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, config_file):
  """Files of `select`: two seeds of one task and another task by chance, one by size, per net."""
  folder = tmp_path_factory.mktemp("chosen")
  random = ["--config.gps.score=random"]
  net = ["--config.gps.level=net", "--config.gps.score=magnitude"]
  made = {"a": ("", random), "b": ("", [*random, "--config.seed=1"]),
          "t": (":task=mini_texture", random), "net": (":task=mini_fashion", net)}
  paths = {}
  for name, (task, flags) in made.items():
    paths[name] = folder / f"{name}.safetensors"
    argv = ["select", f"--config={config_file}{task}", f"--out={paths[name]}", *flags]
    assert cli.main(argv) == 0
  return paths


def test_select_writes_a_file_for_each_budget(capsys, config_file, tmp_path):
  flags = ["--config.spt.score=random", f"--config={config_file}:methods=spt"]
  argv = ["select", *flags, "--out", tmp_path / "s.safetensors"]
  code, printed, err = run(capsys, *argv, "--budgets=500,2000")
  assert (code, err) == (0, "")
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "s-2000.safetensors", "s-500.safetensors"]
  for budget in (500, 2000):
    places, header = selection_file.read(tmp_path / f"s-{budget}.safetensors")
    assert header["method"]["budget"] == budget
    assert sum(rows.size for rows in places.values()) < 1.2 * budget
    assert f"s-{budget}.safetensors: " in printed
  code, _, err = run(capsys, *argv, "--budgets=many")
  assert code == 2 and "--budgets=many is no list of numbers" in err
  argv[2] = f"--config={config_file}"
  code, _, err = run(capsys, *argv, "--budgets=500")
  assert code == 2 and "--budgets is for spt, and what chooses here is gps" in err


def test_select_writes_what_its_run_would_choose(capsys, config_file, tmp_path):
  out = tmp_path / "folder/selection.safetensors"
  flags = ["--config.gps.score=magnitude", "--config.gps.k=2"]
  for seed in (1, 0):  # the second takes the place of the first
    argv = ["select", f"--config={config_file}", *flags, f"--config.seed={seed}", "--out", out]
    code, printed, err = run(capsys, *argv)
    assert (code, err) == (0, "")
  places, header = selection_file.read(out)
  assert header["method"]["k"] == 2 and header["seed"] == 0 and header["task"] == "mini_digits"
  config = cli.read_config(config_file, flags)
  (tmp_path / "run").mkdir()
  loop.prepare(config, tmp_path / "run")
  assert (tmp_path / "run/selection.safetensors").read_bytes() == out.read_bytes()
  assert [path.name for path in out.parent.iterdir()] == [out.name]
  lines = printed.splitlines()
  # Two of the 24 inputs of each of the 2 x 24 neurons of q.
  assert ["q", "96", "1,152", "8.333"] in [line.split() for line in lines]
  entries = sum(rows.size for rows in places.values())
  assert lines[-1] == (f"{out}: {entries:,} entries of {len(places)} leaves, "
                       f"{out.stat().st_size:,} bytes")


def test_a_scan_chooses_what_the_unrolled_model_does(capsys, config_file, tmp_path):
  files = []
  for loop_form in ("python", "scan"):
    files.append(tmp_path / f"{loop_form}.safetensors")
    code, *_ = run(capsys, "select", f"--config={config_file}", "--config.gps.score=magnitude",
                   f"--config.model.loop={loop_form}", f"--out={files[-1]}")
    assert code == 0
  assert files[0].read_bytes() == files[1].read_bytes()
  assert len(report.blocks(selection_file.read(files[1])[1])) == 2


def test_a_file_of_select_is_one_for_a_run(config_file, chosen):
  places, header = selection_file.read(chosen["net"])
  assert header["counts"] == {path: rows.size for path, rows in places.items()}
  assert header["methods"][0]["chosen"] and header["shapes"].keys() > header["counts"].keys()
  flags = ["--config.gps.level=net", "--config.gps.score=magnitude"]
  config = cli.read_config(f"{config_file}:task=mini_fashion", flags)
  config.unlock().selection = str(chosen["net"])
  tuned = loop.prepare(config).tuned
  assert selection_file.plain(tuned.methods[0], "gps") == header["methods"][0]


@pytest.mark.slow
def test_select_shows_how_far_it_is(capsys, config_file, tmp_path):
  flags = ["--config.gps.score=cross_entropy", "--config.batch_size=400",
           "--config.data.train_split=train800", "--config.data.eval_split=val200"]
  argv = ["select", f"--config={config_file}", *flags, "--out", tmp_path / "x.safetensors"]
  code, printed, _ = run(capsys, *argv)
  assert code == 0
  assert [line.split()[:5] for line in printed.splitlines() if line.startswith("choosing")] == [
    ["choosing", "by", "cross_entropy:", "batch", f"{done}/2"] for done in (1, 2)]


def test_select_tells_what_spt_places_and_its_counts_are_those_of_the_scores(
  capsys, config_file, tmp_path
):
  out = tmp_path / "spt.safetensors"
  flags = ["--config.methods=spt,lora", "--config.spt.score=random", "--config.lora.rank=1",
           "--config.spt.tau=1500"]
  code, printed, err = run(capsys, "select", f"--config={config_file}", *flags, f"--out={out}")
  assert (code, err) == (0, "")
  places, header = selection_file.read(out)
  own, placed = header["methods"]
  entries = sum(rows.size for rows in places.values())
  assert sum(header["counts"].values()) == 1500 > entries > 0 and placed["sites"] and own["whole"]
  assert printed.splitlines()[-1] == (
    f"{out}: {entries:,} entries of {len(places)} leaves, {len(own['whole'])} whole vectors, "
    f"lora at {len(placed['sites'])} sites, {out.stat().st_size:,} bytes")
  code, printed, _ = run(capsys, "report", "selection", out)
  shares = report.blocks(header)  # a block: 6,912 numbers of kernels, 216 of biases, 96 of norms
  assert code == 0 and sum(s.numbers for s in shares.values()) == 2 * 7224
  named = [line.split() for line in printed.splitlines() if line.startswith("encoder/blocks_0 ")]
  assert named[0][1] == f"{shares['encoder/blocks_0'].entries:,}"
  config = cli.read_config(config_file, [*flags, f"--config.selection={out}"])
  tuned = loop.prepare(config).tuned
  assert [list(m.sites) for m in tuned.methods[1:]] == [placed["sites"]]


def test_a_report_on_one_file_prints_its_shares(capsys, chosen):
  code, printed, err = run(capsys, "report", "selection", chosen["net"])
  assert (code, err) == (0, "")
  tables = report.tables(report.read([chosen["net"]]))
  assert printed == f"{tables['blocks']}\n\n{tables['operations']}\n\n"
  assert "mini_fashion s0: chosen, in percent" in printed


def test_a_report_on_several_files_writes_tables_and_figures(capsys, chosen, tmp_path):
  paths = [chosen[name] for name in "abt"]
  code, printed, _ = run(capsys, "report", "selection", *paths, "--out", tmp_path / "new")
  assert code == 0
  tables = report.tables(report.read(paths))
  assert tables.keys() == {"blocks", "operations", "histogram", "overlap", "variance"}
  for name, table in tables.items():
    assert (str(table) in printed) == (name != "histogram")
    with (tmp_path / f"new/{name}.csv").open() as file:
      header, *rows = csv.reader(file)
    assert tuple(header) == table.columns
    assert [tuple(map(str, row)) for row in table.rows] == [tuple(row) for row in rows]
    with Image.open(tmp_path / f"new/{name}.png") as image:
      image.load()
    assert (tmp_path / f"new/{name}.svg").read_text().startswith("<?xml")
  assert len(list((tmp_path / "new").iterdir())) == 3 * len(tables)
  a, b, t = (selection_file.read(path)[0] for path in paths)
  assert tables["overlap"].rows[1][1:] == (report.overlap(a, b), 1.0, report.overlap(b, t))


def test_the_gap_of_a_task_to_a_folder_and_to_a_task(capsys, config_file, tmp_path):
  random = np.random.default_rng(0)
  for name in ("dark", "bright"):
    (tmp_path / name).mkdir()
    for i in range(6):
      image = random.integers(0, 120, (20, 28, 3), np.uint8) + 100 * (name == "bright")
      Image.fromarray(image.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
  base = ["report", "domain", f"--config={config_file}", "--images=24"]

  def gap(*flags):
    code, printed, err = run(capsys, *base, *flags)
    assert (code, err) == (0, "")
    line = next(line for line in printed.splitlines() if line.startswith("mini_digits "))
    return float(line.split()[-1])

  parts = loop.opened(cli.read_config(config_file, []))

  def features(task, root=None):
    dataset = data.open(task, root=root, size=32)
    split = dataset.split(dataset.train_split)
    indices = domain.sample(split, 24)
    return domain.features(parts.model, parts.params, split, indices, "inception", len(indices))

  here, there = features("mini_digits"), features("mini_fashion")
  found = gap("--source=mini_fashion", "--kernel=rbf")
  assert found == pytest.approx(domain.rbf(here, there), rel=1e-3) and found > 0
  found = gap(f"--source={tmp_path}")
  assert found == pytest.approx(domain.linear(here, features("folder", tmp_path)), rel=1e-3)
  assert found > domain.linear(here, there) > 0


@pytest.fixture
def results(tmp_path):
  """A function that writes result.json files of runs on (task, accuracy) and gives their pair."""

  def write(task, a, b, model="vit_test"):
    paths = []
    for name, accuracy in {"a": a, "b": b}.items():
      paths.append(tmp_path / f"{task}-{name}.json")
      paths[-1].write_text(json.dumps(
        {"task": task, "model": model, "eval_split": "test", "test_accuracy": accuracy}))
    return f"{paths[0]}:{paths[1]}"

  return write


def test_gaps_of_pairs_stand_beside_their_gaps_of_accuracy(
  capsys, config_file, results, tmp_path
):
  pairs = [results("mini_fashion", 0.75, 0.5), results("mini_texture", 0.5, 0.75)]
  code, printed, _ = run(
    capsys, "report", "domain", f"--config={config_file}", "--source=mini_digits", "--images=8",
    "--pairs", *pairs, f"--out={tmp_path / 'new'}")
  assert code == 0
  rows = [line.split() for line in printed.splitlines()]
  assert [row[3:] for row in rows if row and row[0] == "mini_fashion"] == [["75", "50", "25"]]
  assert [row[3:] for row in rows if row and row[0] == "mini_texture"] == [["50", "75", "-25"]]
  assert {path.name for path in (tmp_path / "new").iterdir()} == {
    f"{name}.{kind}" for name in ("domain", "domain_groups") for kind in ("csv", "png", "svg")}


CHOOSE, FAR = ["select", "--config=FILE", "--out=x.safetensors"], ["report", "domain"]
MISTAKES = {
  "no config": (["select", "--out=x.safetensors"], "--config is missing, for example"),
  "option": ([*CHOOSE, "--workdir=x"], "select has no option '--workdir=x'"),
  "suffix": (["select", "--config=FILE", "--out=x.npz"], "--out=x.npz must end in .safetensors"),
  "nothing chooses": (["select", "--config=FILE:methods=bias", "--out=x.safetensors"],
                      "None of the methods bias chooses what it trains: give --config.methods="),
  "chosen": ([*CHOOSE, "--config.selection=x"], "selection=x is a choice already made"),
  "batch": ([*CHOOSE, "--config.batch_size=9"], "batch_size=9"),
  "no file": (["report", "selection", "nope"], "nope does not exist"),
  "no selection": (["report", "selection", "BACKBONE"], "BACKBONE is no complete safetensors"),
  "word": (["report", "selection", "nope", "--kernel=rbf"], "takes no argument '--kernel=rbf'"),
  "source": ([*FAR, "--config=FILE", "--source=mini_digit"], "no task 'mini_digit'"),
  "images": ([*FAR, "--config=FILE", "--source=x", "--images=0"], "--images=0 must be 1 or more"),
  "pair": ([*FAR, "--config=FILE", "--source=x", "--pairs", "a:b"], "--pairs=a:b is not of the f"),
  "results": ([*FAR, "--config=FILE", "--source=x", "--pairs", "a.json:b.json"], "There is no a.j"),
  "kernel": ([*FAR, "--config=FILE", "--source=x", "--kernel=x"], "invalid choice: 'x'"),
  "override": ([*FAR, "--config=FILE", "--source=x", "--frob"], "domain has no option '--frob'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(capsys, config_file, backbone, name, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  argv, sentence = MISTAKES[name]
  argv = [word.replace("FILE", config_file).replace("BACKBONE", backbone) for word in argv]
  code, out, err = run(capsys, *argv)
  assert (code, out) == (2, "") and err.startswith("python -m peft_jax")
  assert sentence.replace("BACKBONE", backbone) in err and err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_runs_of_another_model_and_a_missing_matplotlib_are_one_sentence(
  capsys, config_file, results, chosen, monkeypatch, tmp_path
):
  argv = ["report", "domain", f"--config={config_file}", "--source=mini_digits", "--pairs",
          results("mini_digits", 0.5, 0.5, "vit_b16")]
  code, out, err = run(capsys, *argv)
  assert (code, out) == (2, "") and "of vit_b16, but the config's features are those of v" in err
  monkeypatch.setattr(figures, "need", lambda: (_ for _ in ()).throw(FileNotFoundError("Figures")))
  code, out, err = run(capsys, "report", "selection", chosen["a"], f"--out={tmp_path / 'new'}")
  assert (code, out, err) == (2, "", "python -m peft_jax report: Figures\n")
  assert not (tmp_path / "new").exists()
