"""python -m peft_jax: what each verb prints, and one sentence with exit code 2 for mistakes."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import peft_jax
from peft_jax import __main__ as cli
from peft_jax import account, adapter_file, data, explain, models, safetensors, weights
from peft_jax.methods import LoRA
from peft_jax.sites import sites
from peft_jax.train import config as config_lib
from peft_jax.train import loop
from peft_jax.tree import flat
from peft_jax.tuned import Tuned, join

CONFIG = """
from peft_jax.train import config as config_lib

def get_config(argument=""):
  given = config_lib.parse_argument(argument, {"task": "mini_digits"})
  config = config_lib.default().unlock()
  config.task = given["task"]
  config.model.name = "vit_test"
  config.weights = "random"
  config.batch_size = 16
  return config.lock()
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "test.py"
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A folder of 3 classes of noise around 3 colours, 5 images each."""
  root = tmp_path_factory.mktemp("pictures")
  random = np.random.default_rng(0)
  for c, name in enumerate(("red", "green", "blue")):
    (root / name).mkdir()
    for i in range(5):
      image = random.integers(0, 120, (20, 28, 3), np.uint8)
      image[..., c] += 100
      Image.fromarray(image).save(root / name / f"{i}.png")
  return root


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, pictures):
  """The file of a tuned vit_test on seeded weights, every variable moved."""
  model = models.create("vit_test", num_classes=3)
  key = jax.random.key(4)
  params, base = weights.load("random", model, key=key)
  table = sites(model, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
  tuned = Tuned(model, (LoRA(rank=2),), table)
  train, _ = tuned.split({"params": params, **tuned.init(key, params)})
  random = np.random.default_rng(1)
  train = jax.tree.map(lambda x: x + random.normal(0, 0.2, x.shape).astype(np.float32), train)
  path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
  dataset = data.open("folder", root=pictures, size=32)
  adapter_file.save(
    path,
    train,
    tuned=tuned,
    base=base,
    model="vit_test",
    resize="bicubic_pil",
    normalize="inception",
    task="folder",
    class_names=dataset.class_names,
    key=key,
  )
  return str(path)


@pytest.fixture(autouse=True, scope="module")
def load_once():
  """Seeded weights take seconds to make; every verb may have the same ones."""
  patch = pytest.MonkeyPatch()
  load = functools.cache(peft_jax.load)
  patch.setattr(peft_jax, "load", load, raising=False)
  yield
  patch.undo()


def run(capsys, *argv):
  """(exit code, stdout, stderr) of one command."""
  try:
    code = cli.main([str(word) for word in argv])
  except SystemExit as stopped:
    code = stopped.code
  return code, *capsys.readouterr()


def said(capsys, *argv):
  """What a command that works prints."""
  code, out, err = run(capsys, *argv)
  assert (code, err) == (0, "")
  return out


@functools.cache
def accounted(path, *overrides):
  return account.account(cli.read_config(path, overrides))


# explain


def test_explain_prints_sites_counts_flops_and_size(capsys, config_file):
  out = said(capsys, "explain", f"--config={config_file}", "--config.methods=lora,ssf")
  found = accounted(config_file, "--config.methods=lora,ssf")
  assert out == f"{found}\n"
  q = next(line for line in out.splitlines() if line.startswith("encoder/blocks_1/attn/q "))
  assert re.split(r"\s{2,}", q) == [
    "encoder/blocks_1/attn/q",
    "Dense",
    "(17, 24) -> (17, 24)",
    "lora.a (24, 8), lora.b (8, 24), ssf.scale (24,), ssf.shift (24,)",
    "432",
  ]
  assert re.search(r"^encoder +Encoder .* 0$", out, re.M)  # untrained sites are listed as well
  assert f"{found.trained:,} with the head" in out and f"{found.file:,} bytes" in out


@pytest.mark.parametrize("methods", ["lora,san", "full"])
def test_explained_counts_and_bytes_are_those_of_the_run(tmp_path, config_file, methods):
  found = accounted(config_file, f"--config.methods={methods}")
  config = cli.read_config(config_file, [f"--config.methods={methods}"])
  parts = loop.prepare(config)
  head = parts.train["params"]["head"]
  every = join(parts.train, parts.frozen)["params"]
  sizes = [sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (parts.train, head, every)]
  assert (found.trained, found.head, found.backbone) == (*sizes[:2], sizes[2] - sizes[1])
  path = tmp_path / "a"
  about = adapter_file.of_run(config, parts.dataset)
  adapter_file.save(path, parts.train, tuned=parts.tuned, base=parts.base, **about)
  assert found.file == path.stat().st_size
  assert str(parts.tuned) == explain.table(found.tuned)


def test_flops_are_those_of_the_matrix_products_and_a_little_more(config_file):
  found = accounted(config_file, "--config.methods=lora,san")
  d, n, batch = 24, 17, 16
  products = batch * (2 * 16 * 192 * d + 2 * (24 * n * d**2 + 4 * n**2 * d))
  assert products < found.forward < 1.6 * products  # softmax, gelu and norms weigh at this width
  assert found.forward < found.tuned_forward < 1.4 * found.forward
  assert 1.5 * found.forward < found.step < 4 * found.forward
  full = accounted(config_file, "--config.methods=full")
  assert 2 * full.forward < full.step < 3.5 * full.forward


def test_a_scan_costs_what_its_unrolled_form_costs(config_file):
  flags = ["--config.methods=lora", "--config.model.loop=scan"]
  scan, loop_form = accounted(config_file, *flags), accounted(config_file, flags[0])
  assert (scan.forward, scan.step) == (loop_form.forward, loop_form.step)
  own = accounted(config_file, *flags, "--config.lora.sites=encoder/blocks/attn/q")
  assert own.step is None and "not known for these sites under a scan" in str(own)


def test_explain_allocates_no_weights(monkeypatch, config_file):
  monkeypatch.setattr(weights, "load", lambda *args, **kwargs: 1 / 0)
  before = sum(a.nbytes for a in jax.live_arrays())
  flags = ("--config.weights=nowhere.npz", "--config.methods=ssf", "--config.seed=9")
  found = account.account(cli.read_config(config_file, flags))
  assert found.trained > 0 and sum(a.nbytes for a in jax.live_arrays()) - before < 1000


EXPLAIN = {
  "missing": ([], "--config is missing, for example"),
  "nowhere": (["--config=nope.py"], "There is no config file 'nope.py'"),
  "argument": (["--config=FILE:tas=x"], "no key 'tas'; did you mean 'task'"),
  "key": (["--config=FILE", "--config.lrr=1"], "The config has no key 'lrr'; did you mean 'opti"),
  "value": (["--config=FILE", "--config.optim.lr=x"], "could not convert string to float"),
  "option": (["--config=FILE", "--workdir=x"], "explain has no option '--workdir=x'"),
  "word": (["--config=FILE", "x"], "'x' is no option"),
  "method": (["--config=FILE", "--config.methods=lore"], "methods='lore' does not exist; did you"),
  "task": (["--config=FILE:task=mini_digit"], "no task 'mini_digit'"),
  "folder": (["--config=FILE:task=folder"], "needs data.root"),
}


@pytest.mark.parametrize("name", EXPLAIN)
def test_mistakes_before_a_run_are_one_sentence(capsys, config_file, name):
  argv, sentence = EXPLAIN[name]
  argv = [word.replace("FILE", config_file) for word in argv]
  code, out, err = run(capsys, "explain", *argv)
  assert (code, out) == (2, "") and err.startswith("python -m peft_jax explain: ")
  assert sentence in err and err.count("\n") == 1


def test_a_pattern_that_selects_nothing_lists_near_sites(capsys, config_file):
  flags = [f"--config={config_file}", "--config.methods=lora", "--config.lora.sites=.*/query"]
  code, out, err = run(capsys, "explain", *flags)
  assert (code, out) == (2, "")
  assert "LoRA: '.*/query' selects none of the 14 sites of kind" in err
  assert "  encoder/blocks_0/attn/q  Dense  (17, 24) -> (17, 24)" in err.splitlines()


def test_the_command_line_of_the_process_is_left_alone(config_file):
  before = list(sys.argv)
  assert cli.read_config(config_file, ["--config.seed=7"]).seed == 7
  with pytest.raises(ValueError):
    cli.read_config(config_file, ["--config.seed=x"])
  assert sys.argv == before


# evaluate, predict, merge


def test_evaluate_gives_the_accuracy_of_the_held_out_split(capsys, adapter, pictures):
  out = said(capsys, "evaluate", adapter, "--data.root", pictures, "--batch_size=8")
  split = data.open("folder", root=pictures, size=32).split("val")
  loaded = peft_jax.load(adapter, None)
  right = int((loaded.logits(split.images()).argmax(-1) == split.labels).sum())
  assert re.fullmatch(
    rf"folder val: accuracy {100 * right / 3:.2f} % \({right} of 3\), loss \d+\.\d{{4}}\n", out
  )


def test_evaluate_takes_a_task_that_is_read_from_disk(
  capsys, adapter, pictures, tmp_path, monkeypatch
):
  for part in ("train", "test"):
    shutil.copytree(pictures, tmp_path / "StanfordCars" / part)
  sizes = {"train": 13, "val": 2, "trainval": 15, "test": 15}
  row = dataclasses.replace(data.TASKS["stanford_cars"], num_classes=3, sizes=sizes)
  monkeypatch.setitem(data.TASKS, "stanford_cars", row)
  out = said(capsys, "evaluate", adapter, "--task=stanford_cars", "--data.root", tmp_path)
  split = data.open("stanford_cars", root=tmp_path, size=32).split("test")
  logits = peft_jax.load(adapter, None).logits(split.images())
  right = int((logits.argmax(-1) == split.labels).sum())
  assert out.startswith(f"stanford_cars test: accuracy {100 * right / 15:.2f} % ({right} of 15), ")
  code, _, err = run(capsys, "evaluate", adapter, "--task=nabirds", "--data.root", tmp_path)
  assert code == 2 and "Task 'nabirds' was not found" in err and err.count("\n") == 1


def test_predict_prints_three_likeliest_classes_per_image(capsys, adapter, pictures):
  paths = [pictures / "red/0.png", pictures / "blue/1.png"]
  lines = said(capsys, "predict", adapter, *paths).splitlines()
  ranked = peft_jax.load(adapter, None).rank(paths)
  assert lines == [
    f"{path}: " + ", ".join(f"{label} {p:.3f}" for label, p in classes)
    for path, classes in zip(paths, ranked, strict=True)
  ]
  assert sorted(label for label, _ in ranked[0]) == ["blue", "green", "red"]
  assert abs(sum(p for _, p in ranked[0]) - 1) < 1e-5
  first = said(capsys, "predict", adapter, paths[0], "--top=1")
  assert first == lines[0].partition(",")[0] + "\n"


def test_merge_writes_plain_weights_and_the_measured_difference(
  capsys, adapter, pictures, tmp_path
):
  out_file = tmp_path / "merged.safetensors"
  out = said(capsys, "merge", adapter, "--out", out_file, "--data.root", pictures)
  found = re.search(r"logits of 3 folder val images by at most (\S+) \(largest logit (\S+)\)", out)
  assert float(found[1]) < 1e-4 < float(found[2])
  arrays, metadata = safetensors.read(out_file)
  assert '"task":"folder"' in metadata["peft_jax_merged"]
  loaded = peft_jax.load(adapter, None)
  expected = flat(loaded.merged())
  assert arrays.keys() == expected.keys()
  for path, array in arrays.items():
    np.testing.assert_array_equal(array, expected[path])
  moved = flat(loaded.variables["params"])
  assert any(abs(array - moved[path]).max() > 0.01 for path, array in arrays.items())


def test_merge_in_timms_names_comes_back_bit_for_bit(capsys, adapter, tmp_path):
  loaded, file = peft_jax.load(adapter), tmp_path / "merged.safetensors"
  said(capsys, "merge", adapter, f"--out={file}", "--timm")
  arrays, metadata = safetensors.read(file)
  assert "blocks.0.attn.qkv.weight" in arrays and "head.weight" in arrays
  assert json.loads(metadata["peft_jax_merged"])["class_names"] == list(loaded.labels)
  expected = flat(loaded.merged())
  for path, leaf in weights.names.timm(arrays).items():
    np.testing.assert_array_equal(leaf, expected.pop(path), err_msg=path)
  assert not expected


def test_merge_measures_on_random_images_without_data_and_writes_base_weights(
  capsys, adapter, tmp_path
):
  out = said(capsys, "merge", adapter, f"--out={tmp_path / 'merged.npz'}")
  assert "the logits of 64 random images by at most" in out
  loaded = peft_jax.load(adapter, None)
  params, _ = weights.load(tmp_path / "merged.npz", loaded.tuned.model, key=jax.random.key(0))
  merged = flat(loaded.merged())
  for path, leaf in flat(params).items():
    if not path.startswith("head"):  # weights.load starts a fresh head
      np.testing.assert_array_equal(leaf, merged[path])


MISTAKES = {
  "no adapter": (["predict", "nope", "x.png"], "nope does not exist"),
  "no image": (["predict", "ADAPTER", "nope.png"], "There is no image nope.png"),
  "bad image": (["predict", "ADAPTER", "ADAPTER"], "Cannot read the image "),
  "top": (["predict", "ADAPTER", "x.png", "--top=0"], "--top=0 must be 1 or more"),
  "no root": (["evaluate", "ADAPTER"], "needs data.root"),
  "task": (["evaluate", "ADAPTER", "--task=mini_tex"], "no task 'mini_tex'"),
  "classes": (["evaluate", "ADAPTER", "--task=mini_digits"], "has 10 classes, but the adapter"),
  "split": (["evaluate", "ADAPTER", "--data.root=ROOT", "--split=x"], "has no split 'x'; it has"),
  "batch": (["evaluate", "ADAPTER", "--batch_size=0"], "--batch_size=0 must be 1 or more"),
  "base": (["predict", "ADAPTER", "x.png", "--base=x"], "weights 'x' are neither"),
  "timm": (["merge", "ADAPTER", "--out=x.npz", "--timm"], "must end in .safetensors with --timm"),
  "suffix": (["merge", "ADAPTER", "--out=x.pt"], "must end in .safetensors or .npz"),
  "file in the way": (["merge", "ADAPTER", "--out=ADAPTER/x.npz"], "ADAPTER: File exists; mend"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(capsys, adapter, pictures, name):
  argv, sentence = MISTAKES[name]
  argv = [word.replace("ADAPTER", adapter).replace("ROOT", str(pictures)) for word in argv]
  code, out, err = run(capsys, *argv)
  assert (code, out) == (2, "") and err.startswith(f"python -m peft_jax {argv[0]}: ")
  assert sentence.replace("ADAPTER", adapter) in err and err.count("\n") == 1


def test_other_classes_of_the_same_number_are_refused(capsys, adapter, pictures, tmp_path):
  for name in ("a", "b", "c"):
    (tmp_path / name).symlink_to(pictures / "red")
  code, _, err = run(capsys, "evaluate", adapter, "--data.root", tmp_path)
  assert code == 2 and "has other classes than the adapter" in err


def test_a_bug_keeps_its_traceback(monkeypatch, adapter):
  monkeypatch.setattr(cli.argparse.Namespace, "top", 1, raising=False)
  monkeypatch.setattr(peft_jax, "load", lambda *args: np.zeros(2).reshape(3))
  with pytest.raises(ValueError, match="cannot reshape"):
    cli.main(["predict", adapter, "x.png"])


@pytest.mark.parametrize(
  "argv, sentence",
  [
    ([], "the following arguments are required: VERB"),
    (["frob"], "invalid choice: 'frob'"),
    (["predict", "a"], "the following arguments are required: IMAGE"),
    (["merge", "a"], "the following arguments are required: --out"),
    (["evaluate", "a", "--frob"], "evaluate takes no argument '--frob'"),
    (["evaluate", "a", "--batch_size=x"], "invalid int value: 'x'"),
    (["select", "--config=x"], "the following arguments are required: --out"),
    (["report"], "the following arguments are required: WAY"),
    (["report", "selection"], "the following arguments are required: FILE"),
    (["report", "domain"], "the following arguments are required: --source"),
  ],
)
def test_a_wrong_command_line_is_one_sentence(capsys, argv, sentence):
  code, out, err = run(capsys, *argv)
  assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize(
  "verb", [None, "explain", "evaluate", "predict", "merge", "peft", "select", "report"]
)
def test_help_is_everywhere(capsys, verb):
  code, out, _ = run(capsys, *([verb] if verb else []), "--help")
  assert code == 0 and f"usage: python -m peft_jax {verb or '[-h]'}" in out


def test_the_module_runs_and_its_help_needs_no_jax():
  root = pathlib.Path(cli.__file__).parents[1]
  code = "import runpy, sys; sys.argv = ['x', '--help']\n"
  code += "try: runpy.run_module('peft_jax', run_name='__main__')\n"
  code += "except SystemExit: print('jax' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
  )
  assert "VERB" in done.stdout and done.stdout.splitlines()[-1] == "False"


def test_the_defaults_of_every_config_can_be_explained():
  root = pathlib.Path(cli.__file__).parents[1]
  assert config_lib.resolve(cli.read_config(str(root / "configs/quickstart.py"), [])).task
