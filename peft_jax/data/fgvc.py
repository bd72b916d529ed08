"""FGVC: five fine-grained data sets, in the layouts that VPT, SPT, GPS, SAN and SSF users hold.

    <folder>/{train,val,test}.json         {"<image>": class id}, VPT's lists; SAN's are in split/.
                                           Images in images/, in Images/ or in the folder itself
    <folder>/images.txt, image_class_labels.txt, train_test_split.txt, images/
                                           CUB and NABirds as they are published
    <folder>/{train,val,test}/<class>/*    a tree; where train/ has one companion only, that is the
                                           test set whatever its name (SSF calls it val/)

The first that is there is taken; <folder> is any name of the task table. A class's label is its
place among the sorted ids of all splits together: the code of VPT and SPT sorts each split's own,
which shifts the labels of a split that misses a class. A tree's ids are its folders' names, so its
labels need not be those of the lists: judge an adapter in the layout that it was trained on.
Splits: train, val, trainval (train, then val) and test.

Where val is not given it is cut out of the official training set: the last ceil(N / 10) images in
the order of md5("fgvc-val" + path), path below images/ or train/. That is as many as in VPT's
lists, but not the same ones, and `Dataset.source` says so.
"""

import dataclasses
import hashlib
import json
import math

from etils import epath

from peft_jax.data import class_tree, on_disk
from peft_jax.data.image_list import check_files, file_sizes
from peft_jax.data.split import concatenate, of_task

LISTS = {name: f"{name}.json" for name in ("train", "val", "test")}
TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
CUT = "val cut out of train by MD5, not VPT's"


@dataclasses.dataclass(frozen=True)
class Found:
  """What a layout holds.

  parts: split -> [(image, class id), ...], of train, test and, where the layout gives it, val.
  places: split -> the file or folder that lists it.
  ids: the class ids in label order. names: of the classes, None where the layout gives none.
  base: the folder that the images' paths start from. below: what is left out of a path's start
    before it is hashed.
  """

  parts: dict[str, list]
  places: dict[str, epath.Path]
  ids: list
  base: epath.Path
  names: tuple[str, ...] | None = None
  below: str = ""


def open_task(task, root, size, resize):
  """The Dataset of `task`, a row of the table, below `root`; counts and file names are checked.

  Raises ValueError or FileNotFoundError naming what is missing or not as the table has it. Only
  the border between train and val may lie elsewhere than the table says.
  """
  folder = on_disk.find_folder(task, root, lambda folder: reader(folder) is not None, layout(task))
  found = reader(folder)(folder)
  on_disk.check_classes(task, len(found.ids), folder)
  parts, source = with_val(task, found, folder)
  check_once(parts, folder)
  label = {id: i for i, id in enumerate(found.ids)}
  splits = {
    name: make_split(name, found.base, part, label, size, resize) for name, part in parts.items()
  }
  if "val" in splits:
    splits["trainval"] = concatenate("trainval", splits["train"], splits["val"])
  return of_task(task, splits, source, found.names)


def layout(task):
  """The layouts in words."""
  folder = task.folders[0] if task.folders else task.name
  return (
    f"{folder}/ with train.json, val.json, test.json and the images (the lists of "
    f"https://github.com/KMnP/vpt), or with {', '.join(TABLES)} and images/ (CUB and NABirds), or "
    "with train/ and test/ that hold one folder a class"
  )


def reader(folder):
  """The function that reads the layout in `folder`; None if there is none."""
  if json_folder(folder) is not None:
    return json_lists
  if (folder / TABLES[0]).exists():
    return tables
  if class_tree.classes(folder / "train"):
    return tree
  return None


def json_folder(folder):
  """Where the JSON lists are, or None."""
  for place in (folder, folder / "split"):
    if any((place / file).exists() for file in LISTS.values()):
      return place
  return None


def json_lists(folder):
  """The Found of VPT's lists."""
  place = json_folder(folder)
  lists = {name: place / file for name, file in LISTS.items()}
  parts = {name: list(read_json(file).items()) for name, file in lists.items()}
  ids = {id for part in parts.values() for _, id in part}
  if len({type(id) for id in ids}) > 1:
    raise ValueError(f"{place}: some class ids are numbers and some are text; fetch them again.")
  first = next(key for part in parts.values() for key, _ in part)
  bases = [folder / "images", folder / "Images", folder]
  base = next((base for base in bases if (base / first).exists()), None)
  if base is None:
    raise FileNotFoundError(
      f"{lists['train']} lists {first}, which is not in {', '.join(map(str, bases))}; put the "
      "images into one of them."
    )
  for name, part in parts.items():
    check_files(lists[name], [base / key for key, _ in part])
  return Found(parts, lists, sorted(ids), base)


def read_json(file):
  """{image: class id} of one list, checked."""
  if not file.exists():
    raise FileNotFoundError(
      f"There is no {file}; labels are numbered over {', '.join(LISTS.values())} together, so "
      "all three are needed."
    )
  try:
    found = json.loads(file.read_bytes().decode("utf-8-sig"))
  except ValueError as error:
    raise ValueError(f"{file} is no JSON ({error}); fetch it again.") from error
  if not isinstance(found, dict) or not found:
    raise ValueError(f'{file} should hold {{"<image>": class id, ...}}; fetch it again.')
  for image, id in found.items():
    if not image or isinstance(id, bool) or not isinstance(id, int | str):
      raise ValueError(f"{file}: expected a class id for {image!r}, found {id!r}.")
  return found


def tables(folder):
  """The Found of the published CUB or NABirds."""
  images, classes, splits = (read_table(folder / name) for name in TABLES)
  for name, table in zip(TABLES[1:], (classes, splits), strict=True):
    if odd := sorted(images.keys() ^ table.keys()):
      raise ValueError(
        f"{folder / TABLES[0]} and {folder / name} are not about the same images: '{odd[0]}' is in "
        "one of them only; fetch both again."
      )
  for name, table, fits in (
    (TABLES[1], classes, str.isdecimal),
    (TABLES[2], splits, ("0", "1").__contains__),
  ):
    if odd := next((f"{id} {value}" for id, value in table.items() if not fits(value)), None):
      raise ValueError(f"{folder / name}: '{odd}' does not fit; fetch it again.")
  parts = {
    part: [(path, int(classes[id])) for id, path in images.items() if splits[id] == value]
    for part, value in (("train", "1"), ("test", "0"))
  }
  ids = sorted({int(id) for id in classes.values()})
  names = None
  if (folder / "classes.txt").exists():
    given = read_table(folder / "classes.txt")
    given = {int(id): name for id, name in given.items() if id.isdecimal()}
    names = tuple(given.get(id, str(id)) for id in ids)
  base = folder / "images"
  check_files(folder / TABLES[0], [base / path for path in images.values()])
  return Found(parts, dict.fromkeys(parts, folder / TABLES[0]), ids, base, names)


def read_table(file):
  """{id: the rest of its line} of lines `<id> <rest>`."""
  if not file.exists():
    raise FileNotFoundError(f"There is no {file}; fetch the data set again.")
  found = {}
  text = file.read_bytes().decode("utf-8-sig", "replace")
  for number, line in enumerate(text.splitlines(), 1):
    id, _, rest = line.strip().partition(" ")
    if id and (not rest or id in found):
      raise ValueError(
        f"{file}, line {number}: expected '<id> <value>' with an id of its own, found '{line}'."
      )
    if id:
      found[id] = rest.strip()
  return found


def tree(folder):
  """The Found of class folders in train/ and one or two of val/ and test/."""
  held_out = class_tree.held_out(folder)
  if not held_out:
    raise ValueError(
      f"{folder} has train/ with class folders, but no test/ (or val/) with class folders beside "
      "it; fetch the data set again."
    )
  if len(held_out) == 1:
    held_out = {"test": next(iter(held_out.values()))}
  folders = {"train": folder / "train", **held_out}
  names = class_tree.common(folders.values())
  parts = {}
  for part, path in folders.items():
    keys, labels = class_tree.keys_and_labels(path, names)
    parts[part] = [(key, names[label]) for key, label in zip(keys, labels, strict=True)]
  given = None if all(map(str.isdecimal, names)) else names
  return Found(parts, folders, list(names), folder, given, below="train/")


def with_val(task, found, folder):
  """(parts with val, what to call the source), once the counts are those of the table.

  A training set of just the table's train images is left without val.
  """
  parts, sizes, places = found.parts, task.sizes, found.places
  note = ""
  if "val" not in parts and len(parts["train"]) == sizes["trainval"]:
    parts = {**parts, **cut(parts["train"], found.below)}
    note = f" ({CUT})"
  on_disk.check_count(task, "test", len(parts["test"]), sizes["test"], places["test"])
  total = sum(len(parts[name]) for name in ("train", "val") if name in parts)
  if "val" in parts or total != sizes["train"]:
    where = " and ".join(str(places[name]) for name in ("train", "val") if name in places)
    on_disk.check_count(task, "train and val together", total, sizes["trainval"], where)
  order = [name for name in ("train", "val", "test") if name in parts]
  return {name: parts[name] for name in order}, f"{folder}{note}"


def cut(train, below):
  """{"train": ..., "val": ...} of the official training set, each in its order."""

  def place(key):
    return hashlib.md5(f"fgvc-val{key.removeprefix(below)}".encode()).digest()

  ordered = sorted((key for key, _ in train), key=place)
  val = set(ordered[len(train) - math.ceil(len(train) / 10) :])
  return {
    "train": [item for item in train if item[0] not in val],
    "val": [item for item in train if item[0] in val],
  }


def check_once(parts, folder):
  """ValueError naming an image that is listed twice."""
  seen = {}
  for part, items in parts.items():
    for key, _ in items:
      if key in seen:
        raise ValueError(
          f"{folder} lists {key} in {seen[key]} and again in {part}; fetch the lists again."
        )
      seen[key] = part


def make_split(name, base, part, label, size, resize):
  keys = [key for key, _ in part]
  labels = [label[id] for _, id in part]
  content = lambda: file_sizes([base / key for key in keys])  # noqa: E731
  return on_disk.make_split(name, base, keys, labels, size, resize, content)
