"""The task table: VTAB-1k's 19 tasks and the seven embedded ones, in the papers' order.

VTAB (Zhai et al. 2019, arXiv:1910.04867) as its code, task_adaptation, defines it: train800 to
train and val200 to choose, then train800val200 (one after the other) to train and the whole test
split to report top-1. Slices index tensorflow-datasets' own order (split.tfds_order). Folder
names are those of NOAH and SPT, SSF, SAN and VPT: never read a class count from one (SAN's
`clevr_dist_8` has 6 classes, `kitti_2` 4, `smallnorb_ele_18` 9).
"""

import dataclasses

from peft_jax.data import class_names

GROUPS = ("natural", "specialized", "structured")


@dataclasses.dataclass(frozen=True)
class Task:
  """One row.

  test: images in the test split. tfds: name and version that hold the images, None if embedded.
  slices: of train800, val200, test, in TFDS's syntax. folders: other names of the task's folder.
  label: how the label comes from the record, where it is not a field of its own.
  """

  name: str
  group: str
  num_classes: int
  test: int
  tfds: str | None = None
  slices: tuple[str, str, str] = ("train[:800]", "validation[:200]", "test")
  folders: tuple[str, ...] = ()
  label: str = "label"

  @property
  def embedded(self):
    return self.name.startswith("mini_")

  @property
  def class_names(self):
    """num_classes names, or None where the source documents none."""
    return class_names.NAMES.get(self.name)

  @property
  def sizes(self):
    """Split name -> number of images."""
    return {"train800": 800, "val200": 200, "train800val200": 1000, "test": self.test}


# fmt: off
VTAB = (
  Task("cifar100", "natural", 100, 10000, "cifar100:3.0.2",
       ("train[:800]", "train[45000:45200]", "test"),
       ("cifar", "cifar_100", "cifar(num_classes=100)", "vtab-cifar(num_classes=100)"),
       "the fine label"),
  # TFDS draws the train split over an unsorted directory listing: it differs between machines.
  Task("caltech101", "natural", 102, 6084, "caltech101:3.0.2",
       ("train[:800]", "train[2754:2954]", "test"),
       ("caltech_102", "vtab-caltech101"),
       "category folder in lower case, with the background as a class"),
  Task("dtd", "natural", 47, 1880, "dtd:3.0.1",
       folders=("dtd_47", "vtab-dtd")),
  Task("oxford_flowers102", "natural", 102, 6149, "oxford_flowers102:2.1.1",
       folders=("flowers102", "oxford_flowers_102", "flowers_102", "vtab-oxford_flowers102")),
  Task("oxford_iiit_pet", "natural", 37, 3669, "oxford_iiit_pet:4.0.0",
       ("train[:800]", "train[2944:3144]", "test"),
       ("pets", "oxford_iiit_pets_37", "oxford_pet", "pets_37", "vtab-oxford_iiit_pet")),
  Task("svhn", "natural", 10, 26032, "svhn_cropped:3.1.0",
       ("train[:800]", "train[65931:66131]", "test"),
       ("svhn_10", "svhn_cropped", "vtab-svhn"),
       "the digit; 0 is class 0"),
  Task("sun397", "natural", 397, 21750, "sun397/tfds:4.0.0",
       folders=("sun_397", "vtab-sun397")),
  Task("patch_camelyon", "specialized", 2, 32768, "patch_camelyon:2.0.0",
       folders=("patch_camelyon_2", "camelyon", "vtab-patch_camelyon")),
  Task("eurosat", "specialized", 10, 5400, "eurosat/rgb:2.0.0",
       ("train[:800]", "train[16200:16400]", "train[21600:]"),
       ("eurosat_10", "eurosat/rgb", "vtab-eurosat")),
  Task("resisc45", "specialized", 45, 6300, "resisc45:3.0.0",
       ("train[:800]", "train[18900:19100]", "train[25200:]"),
       ("resisc_45", "vtab-resisc45")),
  Task("diabetic_retinopathy", "specialized", 5, 42670,
       "diabetic_retinopathy_detection/btgraham-300:3.0.0",
       folders=("diabetic_retinopathy_5", "retinopathy",
                'vtab-diabetic_retinopathy(config="btgraham-300")')),
  Task("clevr_count", "structured", 8, 15000, "clevr:3.1.0",
       ("train[:800]", "train[63000:63200]", "validation"),
       ("clevr_count_8", 'clevr(task="count_all")', 'vtab-clevr(task="count_all")'),
       "objects - 3"),
  Task("clevr_dist", "structured", 6, 15000, "clevr:3.1.0",
       ("train[:800]", "train[63000:63200]", "validation"),
       ("clevr_dist_8", 'clevr(task="closest_object_distance")'),
       "thresholds among 8, 8.5, 9, 9.5, 10 strictly below the least pixel_coords[2]"),
  Task("dmlab", "structured", 6, 22735, "dmlab:2.0.1",
       folders=("dmlab_6", "vtab-dmlab")),
  Task("kitti_dist", "structured", 4, 711, "kitti:3.2.0",
       folders=("kitti", "kitti_2", 'kitti(task="closest_vehicle_distance")'),
       label="thresholds among 8, 20, 999 strictly below the least depth of a car, van or truck"),
  Task("dsprites_loc", "structured", 16, 73728, "dsprites:2.0.0",
       ("train[:800]", "train[589824:590024]", "train[663552:]"),
       ("dsprites_loc_16", 'dsprites(predicted_attribute="label_x_position",num_classes=16)'),
       "floor(label_x_position / 2)"),
  Task("dsprites_ori", "structured", 16, 73728, "dsprites:2.0.0",
       ("train[:800]", "train[589824:590024]", "train[663552:]"),
       ("dsprites_ori_16", 'dsprites(predicted_attribute="label_orientation",num_classes=16)'),
       "floor(label_orientation / 2.5)"),
  Task("smallnorb_azi", "structured", 18, 12150, "smallnorb:2.0.0",
       ("train[:800]", "test[:200]", "test[12150:]"),
       ("smallnorb_azi_18", 'smallnorb(predicted_attribute="label_azimuth")'),
       "label_azimuth"),
  Task("smallnorb_ele", "structured", 9, 12150, "smallnorb:2.0.0",
       ("train[:800]", "test[:200]", "test[12150:]"),
       ("smallnorb_ele_18", 'smallnorb(predicted_attribute="label_elevation")'),
       "label_elevation"),
)

MINI_VTAB = (
  Task("mini_fashion", "natural", 10, 2000),
  Task("mini_digits", "natural", 10, 797),
  Task("mini_texture", "specialized", 8, 2000),
  Task("mini_dsprites_loc", "structured", 16, 2000),
  Task("mini_dsprites_ori", "structured", 16, 2000),
  Task("mini_clevr_count", "structured", 8, 2000),
  Task("mini_clevr_dist", "structured", 6, 2000),
)
# fmt: on

TASKS = {task.name: task for task in VTAB + MINI_VTAB}


def find(name):
  """The row called `name`, or one of whose folders is; ValueError listing all names."""
  if name in TASKS:
    return TASKS[name]
  for task in VTAB:
    if name in task.folders:
      return task
  raise ValueError(
    f"There is no task '{name}'; choose 'folder' (your own images, one folder a class, with "
    f"data.root) or one of {', '.join(TASKS)}."
  )
