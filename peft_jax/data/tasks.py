"""The task table: VTAB-1k's 19 tasks, the seven embedded ones, FGVC's five, CIFAR-100, ImageNet.

VTAB (Zhai et al. 2019, arXiv:1910.04867) as its code, task_adaptation, defines it: train800 to
train and val200 to choose, then train800val200 (one after the other) to train and the whole test
split to report top-1. Slices index tensorflow-datasets' own order (split.tfds_order).

FGVC as VPT (Jia et al. 2022, arXiv:2203.12119) put it together: each official training set cut at
random into train and val, 9 to 1; Flowers has a validation set of its own. VPT and SPT train on
train, SSF, GPS and SAN on trainval (train, then val); all report top-1 on the official test set.

Folder names are those of NOAH and SPT, SSF, GPS, SAN and VPT: never read a class count from one
(SAN's `clevr_dist_8` has 6 classes, `kitti_2` 4, `smallnorb_ele_18` 9).
"""

import dataclasses

from peft_jax.data import class_names

GROUPS = ("natural", "specialized", "structured")


@dataclasses.dataclass(frozen=True)
class Task:
  """One row.

  sizes: split -> number of images. train_split, eval_split: the pair of a final run.
  tfds: name and version that hold the images, None if embedded or in none. slices: of train800,
  val200, test of a VTAB task, in TFDS's syntax. folders: other names of the task's folder.
  label: how the label comes from the record, where it is not a field of its own.
  """

  name: str
  group: str
  num_classes: int
  sizes: dict[str, int]
  train_split: str
  eval_split: str
  tfds: str | None = None
  slices: tuple[str, ...] = ()
  folders: tuple[str, ...] = ()
  label: str = "label"

  @property
  def embedded(self):
    return self.name.startswith("mini_")

  @property
  def class_names(self):
    """num_classes names, or None where the source documents none."""
    return class_names.NAMES.get(self.name)


def _vtab(
  name,
  group,
  num_classes,
  test,
  tfds=None,
  slices=("train[:800]", "validation[:200]", "test"),
  folders=(),
  label="label",
):
  """A row in VTAB-1k's shape. test: images in the test split."""
  sizes = {"train800": 800, "val200": 200, "train800val200": 1000, "test": test}
  splits = ("train800val200", "test")
  return Task(name, group, num_classes, sizes, *splits, tfds, slices, folders, label)


def _fgvc(name, num_classes, train, val, test, tfds, folders):
  """A row of FGVC: images in train, val (VPT's cut of the official training set) and test."""
  sizes = {"train": train, "val": val, "trainval": train + val, "test": test}
  splits, label = ("trainval", "test"), "place among the sorted ids"
  return Task(name, "fgvc", num_classes, sizes, *splits, tfds, folders=folders, label=label)


# fmt: off
VTAB = (
  _vtab("cifar100", "natural", 100, 10000, "cifar100:3.0.2",
        ("train[:800]", "train[45000:45200]", "test"),
        ("cifar", "cifar_100", "cifar(num_classes=100)", "vtab-cifar(num_classes=100)"),
        "the fine label"),
  # TFDS draws the train split over an unsorted directory listing: it differs between machines.
  _vtab("caltech101", "natural", 102, 6084, "caltech101:3.0.2",
        ("train[:800]", "train[2754:2954]", "test"),
        ("caltech_102", "vtab-caltech101"),
        "category folder in lower case, with the background as a class"),
  _vtab("dtd", "natural", 47, 1880, "dtd:3.0.1",
        folders=("dtd_47", "vtab-dtd")),
  _vtab("oxford_flowers102", "natural", 102, 6149, "oxford_flowers102:2.1.1",
        folders=("flowers102", "oxford_flowers_102", "flowers_102", "vtab-oxford_flowers102")),
  _vtab("oxford_iiit_pet", "natural", 37, 3669, "oxford_iiit_pet:4.0.0",
        ("train[:800]", "train[2944:3144]", "test"),
        ("pets", "oxford_iiit_pets_37", "oxford_pet", "pets_37", "vtab-oxford_iiit_pet")),
  _vtab("svhn", "natural", 10, 26032, "svhn_cropped:3.1.0",
        ("train[:800]", "train[65931:66131]", "test"),
        ("svhn_10", "svhn_cropped", "vtab-svhn"),
        "the digit; 0 is class 0"),
  _vtab("sun397", "natural", 397, 21750, "sun397/tfds:4.0.0",
        folders=("sun_397", "vtab-sun397")),
  _vtab("patch_camelyon", "specialized", 2, 32768, "patch_camelyon:2.0.0",
        folders=("patch_camelyon_2", "camelyon", "vtab-patch_camelyon")),
  _vtab("eurosat", "specialized", 10, 5400, "eurosat/rgb:2.0.0",
        ("train[:800]", "train[16200:16400]", "train[21600:]"),
        ("eurosat_10", "eurosat/rgb", "vtab-eurosat")),
  _vtab("resisc45", "specialized", 45, 6300, "resisc45:3.0.0",
        ("train[:800]", "train[18900:19100]", "train[25200:]"),
        ("resisc_45", "vtab-resisc45")),
  _vtab("diabetic_retinopathy", "specialized", 5, 42670,
        "diabetic_retinopathy_detection/btgraham-300:3.0.0",
        folders=("diabetic_retinopathy_5", "retinopathy",
                 'vtab-diabetic_retinopathy(config="btgraham-300")')),
  _vtab("clevr_count", "structured", 8, 15000, "clevr:3.1.0",
        ("train[:800]", "train[63000:63200]", "validation"),
        ("clevr_count_8", 'clevr(task="count_all")', 'vtab-clevr(task="count_all")'),
        "objects - 3"),
  _vtab("clevr_dist", "structured", 6, 15000, "clevr:3.1.0",
        ("train[:800]", "train[63000:63200]", "validation"),
        ("clevr_dist_8", 'clevr(task="closest_object_distance")'),
        "thresholds among 8, 8.5, 9, 9.5, 10 strictly below the least pixel_coords[2]"),
  _vtab("dmlab", "structured", 6, 22735, "dmlab:2.0.1",
        folders=("dmlab_6", "vtab-dmlab")),
  _vtab("kitti_dist", "structured", 4, 711, "kitti:3.2.0",
        folders=("kitti", "kitti_2", 'kitti(task="closest_vehicle_distance")'),
        label="thresholds among 8, 20, 999 strictly below the least depth of a car, van or truck"),
  _vtab("dsprites_loc", "structured", 16, 73728, "dsprites:2.0.0",
        ("train[:800]", "train[589824:590024]", "train[663552:]"),
        ("dsprites_loc_16", 'dsprites(predicted_attribute="label_x_position",num_classes=16)'),
        "floor(label_x_position / 2)"),
  _vtab("dsprites_ori", "structured", 16, 73728, "dsprites:2.0.0",
        ("train[:800]", "train[589824:590024]", "train[663552:]"),
        ("dsprites_ori_16", 'dsprites(predicted_attribute="label_orientation",num_classes=16)'),
        "floor(label_orientation / 2.5)"),
  _vtab("smallnorb_azi", "structured", 18, 12150, "smallnorb:2.0.0",
        ("train[:800]", "test[:200]", "test[12150:]"),
        ("smallnorb_azi_18", 'smallnorb(predicted_attribute="label_azimuth")'),
        "label_azimuth"),
  _vtab("smallnorb_ele", "structured", 9, 12150, "smallnorb:2.0.0",
        ("train[:800]", "test[:200]", "test[12150:]"),
        ("smallnorb_ele_18", 'smallnorb(predicted_attribute="label_elevation")'),
        "label_elevation"),
)

MINI_VTAB = (
  _vtab("mini_fashion", "natural", 10, 2000),
  _vtab("mini_digits", "natural", 10, 797),
  _vtab("mini_texture", "specialized", 8, 2000),
  _vtab("mini_dsprites_loc", "structured", 16, 2000),
  _vtab("mini_dsprites_ori", "structured", 16, 2000),
  _vtab("mini_clevr_count", "structured", 8, 2000),
  _vtab("mini_clevr_dist", "structured", 6, 2000),
)

FGVC = (
  _fgvc("cub_200_2011", 200, 5394, 600, 5794, "caltech_birds2011:0.2.0",
        ("CUB_200_2011", "CUB", "cub2011_200")),
  _fgvc("nabirds", 555, 21536, 2393, 24633, None,
        ("nabirds_555",)),
  _fgvc("oxford_flowers", 102, 1020, 1020, 6149, "oxford_flowers102:2.1.1",
        ("OxfordFlowers", "oxfordflower", "oxfordflowers_102")),
  _fgvc("stanford_dogs", 120, 10800, 1200, 8580, "stanford_dogs:0.2.0",
        ("StanfordDogs", "stanforddogs", "stanforddogs_120")),
  # TFDS's builder fails: the host of the images is gone.
  _fgvc("stanford_cars", 196, 7329, 815, 8041, "cars196:2.1.0",
        ("StanfordCars", "stanfordcars", "stanfordcars_196")),
)

GENERAL = (
  Task("cifar100_full", "general", 100, {"train": 50000, "test": 10000}, "train", "test",
       "cifar100:3.0.2", folders=("cifar-100-binary", "CIFAR-100", "CIFAR100"),
       label="the fine label"),
  # The test images' labels are not public: everyone reports top-1 on val.
  Task("imagenet", "general", 1000, {"train": 1281167, "val": 50000}, "train", "val",
       "imagenet2012:5.1.0", folders=("ImageNet", "imagenet-1k", "imagenet2012", "ILSVRC2012"),
       label="place among the sorted wnids"),
)
# fmt: on

TASKS = {task.name: task for task in VTAB + MINI_VTAB + FGVC + GENERAL}


def find(name):
  """The row called `name`, or one of whose folders is; ValueError listing all names."""
  if name in TASKS:
    return TASKS[name]
  for task in TASKS.values():
    if name in task.folders:
      return task
  raise ValueError(
    f"There is no task '{name}'; choose 'folder' (your own images, one folder a class, with "
    f"data.root) or one of {', '.join(TASKS)}."
  )
