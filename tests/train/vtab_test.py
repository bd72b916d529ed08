"""The published values reach a config by any name of their task.

files/ssf.csv, gps.csv, spt_noah.csv: as read from the published scripts; files/prompts.csv: VPT's
numbers of prompts, see vtab.PROMPTS.
"""

import statistics

import pytest

from peft_jax.data import tasks
from peft_jax.train import recipe, vtab

NAMES = {task.name for task in tasks.VTAB}


def test_every_value_of_every_script_of_ssf(facts, ssf_script, resolved):
  rows = facts("ssf", group="vtab1k")
  assert {row["dataset"] for row in rows} == vtab.SSF.keys() == NAMES
  for row in rows:
    expected = ssf_script(row)
    config = resolved("vtab_ssf", f"task={row['dataset']}")
    assert {key: config[key] for key in expected} == expected


def test_prompts(facts, resolved):
  rows = facts("prompts", suite="vtab")
  assert {row["task"] for row in rows} == vtab.PROMPTS.keys() == NAMES
  for row in rows:
    for kind, backbone, column in [
      ("deep", "vit_b16", "deep"),
      ("deep", "swin_base_patch4_window7_224", "swin_deep"),
      ("shallow", "vit_b16", "shallow"),
    ]:
      config = resolved(f"vtab_vpt_{kind}", f"task={row['task']},backbone={backbone}")
      assert config["vpt.length"] == int(row[column]), row
      assert config["vpt.deep"] == (kind == "deep")


def test_prompts_have_the_mean_of_each_group_that_vpt_prints():
  groups = {"natural": 12.43, "specialized": 52.75, "structured": 107.5}
  for group, mean in groups.items():
    lengths = [vtab.PROMPTS[t.name].deep for t in tasks.VTAB if t.group == group]
    assert statistics.mean(lengths) == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize("table, end", [(vtab.GPS, ""), (vtab.GPS_FIRST, "_first_release")])
def test_every_value_of_every_script_of_gps(table, end, facts):
  rows = facts("gps", suite="vtab1k")
  assert {row["dataset"] for row in rows} == table.keys() == NAMES
  batch = "batch" if end else "batch_size"
  for row in rows:
    expected = [float(row[f"{name}{end}"]) for name in ("lr", batch, "drop_path", "K")]
    assert list(table[row["dataset"]]) == expected, row


@pytest.mark.parametrize("release, table", vtab.GPS_RELEASES.items())
def test_a_release_of_gps_is_an_argument(release, table, resolved):
  keys = ("optim.lr", "batch_size", "model.drop_path", "gps.k")
  for task in ("clevr_dist", "diabetic_retinopathy"):
    config = resolved("vtab_gps", f"task={task},release={release}")
    assert [config[key] for key in keys] == list(table[task])
  assert vtab.GPS["clevr_dist"] != vtab.GPS_FIRST["clevr_dist"]
  assert resolved("vtab_gps", "task=dtd") == resolved("vtab_gps", "release=now,task=dtd")


@pytest.mark.parametrize("argument, sentence", [
  ("release=old", "^The config argument release=old is none of now, first"),
  ("relase=first", "no key 'relase'; did you mean 'release'"),
  ("release", "'release' is not of the form key=value"),
])
def test_another_release_of_gps_is_refused(argument, sentence, resolved):
  with pytest.raises(ValueError, match=sentence):
    resolved("vtab_gps", argument)


def test_the_first_scripts_of_gps_have_the_papers_mean_of_the_parameters():
  neurons, backbone = 83_712, 85_798_656  # as many biases as neurons, and all are trained

  def percent(task, values):
    trained = (values.k + 1) * neurons + 769 * task.num_classes
    return 100 * trained / (backbone + 769 * task.num_classes)

  for table, mean in [(vtab.GPS_FIRST, 0.2496), (vtab.GPS, 0.2444)]:
    assert statistics.mean(percent(t, table[t.name]) for t in tasks.VTAB) == pytest.approx(
      mean, abs=5e-5
    )


@pytest.mark.parametrize(
  "task, like",
  [
    ("kitti_2", "kitti_dist"),  # a folder's name
    ("smallnorb_ele_18", "smallnorb_ele"),
    ("mini_texture", "cifar100"),  # embedded: nothing is published, cifar100's
  ],
)
def test_values_by_another_name(task, like):
  for table in (vtab.SSF, vtab.PROMPTS, vtab.GPS):
    assert recipe.of_task(table, task) == table[like]


def test_an_unknown_task_is_refused(resolved):
  with pytest.raises(ValueError, match="There is no task 'kitty'"):
    resolved("vtab_ssf", "task=kitty")


@pytest.mark.parametrize(
  "script, name",
  [
    ("noah_lora8_vtab", "lora"),
    ("noah_adapter8_vtab", "adapter"),
    ("noah_vpt_vtab", "vpt_deep"),
    ("spt_train_vtab_supervised_lora", "lora"),
    ("spt_train_vtab_supervised_adapter", "adapter"),
    ("spt_train_vtab_supervised_lora", "spt_lora"),
    ("spt_train_vtab_supervised_adapter", "spt_adapter"),
  ],
)
def test_every_value_of_the_scripts_of_noah_and_spt(script, name, facts, resolved):
  row = {row["key"]: row["value"] for row in facts("spt_noah", recipe=script)}
  config = resolved(f"vtab_{name}", "task=dmlab")
  for key in ("lr", "weight_decay", "eps", "epochs", "warmup_epochs", "warmup_lr", "min_lr"):
    assert config[f"optim.{key}"] == float(row[key]), key
  for key, column in [("optim.b1", "beta1"), ("optim.b2", "beta2"), ("batch_size", "batch_size"),
                      ("label_smoothing", "label_smoothing"), ("model.drop_path", "drop_path")]:
    assert config[key] == float(row[column]), key
  assert row["optimizer"].lower() == config["optim.name"]
  assert "max(e-1,0)" in row["schedule_offset"] and config["optim.lag"] == 1
  assert "resize 224x224 bicubic" in row["train_transform"]
  assert (config["data.resize"], config["data.view"]) == ("bicubic_pil", None)
  method = config["methods"][-1]
  dropout = row.get("module_dropout", row.get("structured_dropout"))
  assert config[f"{method}.dropout"] == float(dropout)
  if "rank" in row:
    assert config[f"{method}.{'rank' if method == 'lora' else 'width'}"] == int(row["rank"])
    budgets = sorted(1e6 * float(text) for text in row["budgets_M"].split(","))
    assert sorted(vtab.SPT_BUDGETS) == budgets


@pytest.mark.parametrize("name", ["spt_lora", "spt_adapter"])
def test_what_spt_is_chosen_by(name, facts, resolved):
  row = {row["key"]: row["value"] for row in facts("spt_noah", recipe="spt_sensitivity_vtab")}
  config = resolved(f"vtab_{name}", "task=dmlab,budget=200000")
  for key in ("alpha", "beta"):
    assert config[f"spt.{key}"] == float(row[key])
  assert config["spt.group_size"] == int(row["batch_size"])
  assert config["spt.unstructured"] is (row["structured_only"] == "False")
  assert config["spt.budget"] == 200_000
  # The paper's samples and no stochastic depth, instead of the script's.
  assert (config["spt.num_samples"], row["n_samples"]) == (800, "512")
  assert (config["spt.drop_path"], row["drop_path"]) == (0.0, "0.1")
