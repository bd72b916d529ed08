"""The published values reach a config by any name of their task.

files/vtab.csv: SSF's values as read from its scripts; VPT's numbers of prompts, see vtab.PROMPTS.
"""

import csv
import pathlib
import statistics

import pytest

from peft_jax.data import tasks
from peft_jax.train import config as config_lib
from peft_jax.train import vtab

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
FACTS = {row.pop("task"): row for row in csv.DictReader((HERE / "files/vtab.csv").open())}


def read(name, task):
  return config_lib.read(f"{CONFIGS}/vtab_{name}.py:task={task}")


@pytest.mark.parametrize("task", FACTS)
def test_every_value_of_a_task_is_the_published_one(task):
  facts, ssf = FACTS[task], read("ssf", task)
  found = (ssf.optim.lr, ssf.optim.weight_decay, ssf.model.drop_path)
  assert found == tuple(float(facts[f"ssf_{n}"]) for n in ("lr", "weight_decay", "drop_path"))
  for kind in ("deep", "shallow"):
    vpt = read(f"vpt_{kind}", task).vpt
    assert (vpt.length, vpt.deep) == (int(facts[f"vpt_{kind}"]), kind == "deep")


@pytest.mark.parametrize(
  "task, like",
  [
    ("kitti_2", "kitti_dist"),  # a folder's name
    ("smallnorb_ele_18", "smallnorb_ele"),
    ("mini_texture", "cifar100"),  # embedded: nothing is published, cifar100's
  ],
)
def test_values_by_another_name(task, like):
  for table in (vtab.SSF, vtab.PROMPTS):
    assert vtab.of_task(table, task) == table[like]


def test_every_task_of_vtab_has_values_and_an_unknown_one_is_refused():
  assert vtab.SSF.keys() == vtab.PROMPTS.keys() == FACTS.keys() == {t.name for t in tasks.VTAB}
  with pytest.raises(ValueError, match="There is no task 'kitty'"):
    read("ssf", "kitty")


def test_prompts_have_the_mean_of_each_group_that_vpt_prints():
  groups = {"natural": 12.43, "specialized": 52.75, "structured": 107.5}
  for group, mean in groups.items():
    lengths = [vtab.PROMPTS[t.name].deep for t in tasks.VTAB if t.group == group]
    assert statistics.mean(lengths) == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize("name", ["lora", "adapter", "adaptformer", "vpt_deep", "vpt_shallow"])
def test_what_noah_and_spt_share(name):
  config = read(name, "dmlab")
  optim = config.optim
  found = (optim.lr, optim.warmup_lr, optim.min_lr, optim.lag, optim.weight_decay, optim.epochs)
  assert found == (1e-3, 1e-6, 1e-5, 1, 1e-4, 100)
  assert (config.batch_size, config.model.drop_path, optim.warmup_epochs) == (64, 0.1, 10)
