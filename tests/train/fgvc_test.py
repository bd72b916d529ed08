"""The published values of FGVC reach a config; where they come from: see vtab_test."""

import pytest

from peft_jax.train import fgvc, recipe

NAMES = {"cub_200_2011", "nabirds", "oxford_flowers", "stanford_dogs", "stanford_cars"}


def test_every_value_of_every_script_of_ssf(facts, ssf_script, resolved):
  rows = facts("ssf", group="fgvc")
  assert {row["dataset"] for row in rows} == fgvc.SSF.keys() == NAMES
  for row in rows:
    expected = ssf_script(row)
    config = resolved("fgvc_ssf", f"task={row['dataset']}")
    assert {key: config[key] for key in expected} == expected


def test_every_value_of_every_script_of_gps(facts):
  rows = facts("gps", suite="fgvc")
  assert {row["dataset"] for row in rows} == fgvc.GPS.keys() == NAMES
  for row in rows:
    values = fgvc.GPS[row["dataset"]]
    expected = [float(row[name]) for name in ("lr", "batch_size", "drop_path", "K", "ema_decay")]
    assert list(values) == expected, row
    # The scripts of the first days are the same.
    first = [float(row[f"{n}_first_release"]) for n in ("lr", "batch", "drop_path", "K")]
    assert expected[:4] == first


def test_prompts(facts, resolved):
  rows = facts("prompts", suite="fgvc")
  assert {row["task"] for row in rows} == fgvc.PROMPTS.keys() == NAMES
  for row in rows:
    for kind in ("deep", "shallow"):
      config = resolved(f"fgvc_vpt_{kind}", f"task={row['task']}")
      assert config["vpt.length"] == int(row[kind])
      assert config["vpt.deep"] == (kind == "deep")
      # VPT: 128 images below a hundred prompts, else 64; the rate in proportion.
      assert config["batch_size"] == (64 if int(row[kind]) >= 100 else 128)
      assert config["optim.lr"] == pytest.approx(0.1 * config["batch_size"] / 256)


def test_prompts_have_the_mean_percentage_that_is_printed():
  """Of the whole model, head and prompts included: 0.98 in SPT's Table 1."""
  classes = {
    "cub_200_2011": 200, "nabirds": 555, "oxford_flowers": 102, "stanford_dogs": 120,
    "stanford_cars": 196,
  }  # fmt: skip
  shares = []
  for task, number in classes.items():
    trained = 9216 * fgvc.PROMPTS[task].deep + 769 * number
    shares.append(100 * trained / (85_798_656 + trained))
  assert sum(shares) / 5 == pytest.approx(0.979, abs=5e-4)


@pytest.mark.parametrize("name", ["lora", "adapter", "adaptformer", "spt_lora", "spt_adapter"])
def test_what_spt_says_of_fgvc(name, facts, resolved):
  row = {row["key"]: row["value"] for row in facts("spt_noah", recipe="spt_train_fgvc")}
  config = resolved(f"fgvc_{name}", "task=nabirds")
  assert config["optim.name"] == row["optimizer"].lower()
  assert config["optim.lr"] == float(row["lr"])
  assert config["optim.weight_decay"] == float(row["weight_decay"])
  assert config["batch_size"] == int(row["batch_size"])
  assert "256x256 bicubic, random crop" in row["train_transform"]
  assert "256x256 bicubic, centre crop" in row["eval_transform"]
  assert (config["data.view"], config["data.resize"]) == ("squash_crop", "squash_256")


@pytest.mark.parametrize("name", ["vpt_deep", "vpt_shallow", "linear", "mlp"])
def test_what_vpt_trains_with_sgd(name, resolved):
  config = resolved(f"fgvc_{name}", "task=nabirds")
  assert (config["optim.name"], config["optim.momentum"], config["optim.decay"]) == (
    "sgd", 0.9, "all")
  assert config["optim.weight_decay"] in (0.01, 1e-3, 1e-4, 0.0)
  assert config["head_init"] == "vpt"
  assert config["optim.lr"] * 256 / config["batch_size"] in (
    50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05)


@pytest.mark.parametrize("name", ["full", "bias", "norm", "partial"])
def test_what_vpt_trains_with_adamw(name, resolved):
  config = resolved(f"fgvc_{name}", "task=nabirds")
  assert (config["optim.name"], config["optim.weight_decay"]) == ("adamw", 0.01)
  assert config["optim.lr"] * 256 / config["batch_size"] in (1e-3, 1e-4, 5e-4, 5e-3)
  assert (config["data.view"], config["data.resize"]) == ("short_crop", "short_side_256")
  assert (config["optim.epochs"], config["optim.warmup_epochs"]) == (100, 10)
  assert (config["optim.warmup_lr"], config["optim.min_lr"]) == (0.0, 0.0)
  assert config["head_init"] == "vpt"


def test_san_has_the_images_of_ssf_and_the_optimizer_of_its_own_script(resolved):
  config = resolved("fgvc_san", "task=stanford_cars")
  ssf = resolved("fgvc_ssf", "task=stanford_cars")
  for key in ssf:
    if key.startswith("data.") or key in ("batch_size", "label_smoothing"):
      assert config[key] == ssf[key], key
  optim = {name: config[f"optim.{name}"] for name in ("lr", "warmup_lr", "min_lr", "weight_decay")}
  assert optim == {"lr": 1e-3, "warmup_lr": 1e-4, "min_lr": 1e-8, "weight_decay": 0.0}
  assert config["ema"] == config["model.drop_path"] == config["optim.cooldown_epochs"] == 0


def test_values_by_another_name():
  assert recipe.of_task(fgvc.SSF, "mini_texture") == fgvc.SSF["cub_200_2011"]
  assert recipe.of_task(fgvc.PROMPTS, "folder") == fgvc.PROMPTS["cub_200_2011"]
