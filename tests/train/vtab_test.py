"""The published values reach a config by any name of their task."""

import pathlib

import pytest

from peft_jax.data import tasks
from peft_jax.train import config as config_lib
from peft_jax.train import vtab

RECIPE = str(pathlib.Path(__file__).parents[2] / "configs" / "vtab_ssf.py")


@pytest.mark.parametrize(
  "task, lr, weight_decay, drop_path",
  [
    ("kitti_dist", 1e-2, 5e-5, 0.0),
    ("kitti_2", 1e-2, 5e-5, 0.0),  # a folder's name
    ("smallnorb_ele_18", 5e-3, 5e-2, 0.2),
    ("cifar100", 5e-3, 5e-5, 0.0),
    ("mini_texture", 5e-3, 5e-5, 0.0),  # embedded: nothing is published, cifar100's
  ],
)
def test_values_of_a_task(task, lr, weight_decay, drop_path):
  config = config_lib.read(f"{RECIPE}:task={task}")
  found = (config.optim.lr, config.optim.weight_decay, config.model.drop_path)
  assert found == (lr, weight_decay, drop_path)


def test_every_task_of_vtab_has_values_and_an_unknown_one_is_refused():
  assert vtab.SSF.keys() == {task.name for task in tasks.VTAB}
  with pytest.raises(ValueError, match="There is no task 'kitty'"):
    config_lib.read(f"{RECIPE}:task=kitty")
