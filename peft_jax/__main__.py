"""python -m peft_jax VERB: look at a run before it starts, and use what it made.

    explain   what a config trains where, and what it costs; no weights are loaded
    evaluate  accuracy of an adapter on its task's test split
    predict   class names and probabilities for image files
    merge     plain weights with the adapter folded in
    peft      a LoRA or DoRA adapter to and from the files of HF PEFT
    select    choose what a method trains, without training it
    report    what selections hold, and how far tasks are from others: tables and figures
    weights   look into a published checkpoint, or convert it
"""

from __future__ import annotations

import argparse
import os
import re
import sys

from peft_jax import mistakes

MISTAKE = 2  # exit code: something the user can mend
CHECKED = 64  # images on which merged weights are compared


class Parser(argparse.ArgumentParser):
  """argparse whose errors are one sentence."""

  def error(self, message):
    self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help.\n")


def parser():
  made = Parser(
    prog="python -m peft_jax",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = made.add_subparsers(dest="verb", metavar="VERB", required=True)

  def verb(name, function, text, usage=None, **options):
    sub = verbs.add_parser(
      name, help=text, description=text[0].upper() + text[1:] + ".", usage=usage,
      allow_abbrev=False, **options
    )
    sub.set_defaults(function=function)
    return sub

  sub = verb(
    "explain",
    explain,
    "sites, what is trained there, counts, FLOPs and file size of a config's run",
    "python -m peft_jax explain --config=FILE.py[:key=value,...] [--config.KEY=VALUE ...]",
  )
  _config(sub)

  sub = verb("evaluate", evaluate, "accuracy of an adapter on a task's test split")
  _adapter(sub)
  _task(sub)
  sub.add_argument("--split", help="default: the task's test split")
  sub.add_argument("--batch_size", type=int, default=64, help="images at once; default 64")

  sub = verb("predict", predict, "the likeliest classes of image files, with probabilities")
  _adapter(sub)
  sub.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
  sub.add_argument("--top", type=int, default=3, help="classes per image; default 3")

  sub = verb("merge", merge, "write plain weights with the adapter folded in, and measure them")
  _adapter(sub)
  _task(sub)
  sub.add_argument("--out", required=True, help="FILE.safetensors, or FILE.npz as base weights")
  sub.add_argument("--timm", action="store_true", help="names and layouts of timm's state dict")

  sub = verb("peft", None, "a LoRA or DoRA adapter to and from the files of HF PEFT")
  peft = sub.add_subparsers(dest="way", metavar="WAY", required=True)
  sub = peft.add_parser(
    "export", help="write the folder that PeftModel.from_pretrained reads on timm's model",
    allow_abbrev=False,
  )
  sub.add_argument("adapter", metavar="ADAPTER", help="adapter.safetensors of a training run")
  sub.add_argument("folder", metavar="FOLDER", help="where the two files go")
  sub.set_defaults(function=peft_export)
  sub = peft.add_parser(
    "import", help="write an adapter file from what PEFT saved of timm's model", allow_abbrev=False
  )
  sub.add_argument("folder", metavar="FOLDER", help="holds adapter_config.json")
  sub.add_argument("--out", required=True, help="ADAPTER.safetensors")
  sub.add_argument("--model", required=True, help="timm's name of the model it was trained on")
  sub.add_argument("--base", required=True, help="the weights it was trained on")
  sub.add_argument("--image_size", type=int, help="pixels; default: the model's")
  sub.add_argument("--resize", default="bicubic_pil", help="of images; default bicubic_pil")
  sub.add_argument("--normalize", help="inception, imagenet or clip; default: the model's")
  sub.add_argument("--task", default="", help="the task it was trained for")
  sub.add_argument("--class_names", metavar="A,B,...", help="names of the classes, in order")
  sub.set_defaults(function=peft_import)

  sub = verb(
    "select",
    select,
    "choose what a config's method trains, as its run would, and write it to a file",
    "python -m peft_jax select --config=FILE.py[:key=value,...] [--config.KEY=VALUE ...] "
    "--out=FILE.safetensors [--budgets=N,N,...]",
  )
  _config(sub)
  sub.add_argument("--out", required=True, help="FILE.safetensors, for --config.selection")
  sub.add_argument("--budgets", metavar="N,N,...", help="of spt: a file for each, from one scoring")

  sub = verb("report", None, "what selections hold, and how far tasks are from others")
  report = sub.add_subparsers(dest="way", metavar="WAY", required=True)
  sub = report.add_parser(
    "selection", help="shares by block and operation, overlap and variance of selection files",
    allow_abbrev=False,
  )
  sub.add_argument("files", nargs="+", metavar="FILE", help="selection.safetensors of a run")
  _folder(sub)
  sub.set_defaults(function=report_selection)
  sub = report.add_parser(
    "domain", help="the gap between a task's images and others, as a frozen backbone sees them",
    usage="python -m peft_jax report domain --config=FILE.py[:key=value,...] "
    "[--config.KEY=VALUE ...] --source=TASK_OR_FOLDER [--kernel=linear|rbf] [--images=N] "
    "[--pairs A.json:B.json ...] [--out=FOLDER]", allow_abbrev=False,
  )
  _config(sub)
  sub.add_argument("--source", required=True, metavar="TASK_OR_FOLDER", help="the other images")
  sub.add_argument("--kernel", choices=("linear", "rbf"), default="linear", help="default linear")
  sub.add_argument("--images", type=int, default=1000, help="of each at most; default 1000")
  sub.add_argument("--pairs", nargs="+", default=(), metavar="A.json:B.json",
                   help="result.json files of two methods on a task, whose gap is then taken")
  _folder(sub)
  sub.set_defaults(function=report_domain)

  sub = verb("weights", weights, "look into a published checkpoint, or convert it", add_help=False)
  sub.add_argument("arguments", nargs=argparse.REMAINDER, help="see weights --help")
  sub.set_defaults(rest=True)
  return made


def _config(sub):
  sub.add_argument("--config", metavar="FILE.py", help="as for train.py, overrides included")
  sub.set_defaults(rest=True)


def _folder(sub):
  sub.add_argument("--out", metavar="FOLDER", help="write the tables there, as csv, png and svg")


def _adapter(sub):
  sub.add_argument("adapter", metavar="ADAPTER", help="adapter.safetensors of a training run")
  sub.add_argument("--base", help="weights it was trained on; default: those it names")


def _task(sub):
  sub.add_argument("--task", help="default: the adapter's own")
  sub.add_argument("--data.root", dest="root", help="folder of the task's images")


def main(argv=None):
  """Runs one verb; returns the exit code, 2 with one sentence on stderr for a user's mistake."""
  made = parser()
  args, rest = made.parse_known_args(argv)
  if rest and not getattr(args, "rest", False):
    made.error(f"{args.verb} takes no argument {rest[0]!r}")
  try:
    args.function(args, rest)
    sys.stdout.flush()
    return 0
  except BrokenPipeError:  # | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except (ValueError, OSError) as error:
    if isinstance(error, ValueError) and not mistakes.on_purpose(error):
      raise
    sentence = error
    if isinstance(error, OSError) and error.errno is not None:  # the operating system's own words
      sentence = f"{error.filename}: {error.strerror}; mend this path or its permissions."
    print(f"python -m peft_jax {args.verb}: {sentence}", file=sys.stderr)
    return MISTAKE


def explain(args, overrides):
  from peft_jax.account import account

  print(account(read_config(args.config, overrides)))


def select(args, overrides):
  from peft_jax.selection import command

  budgets = command.numbers(args.budgets) if args.budgets else ()
  command.select(read_config(args.config, overrides, "select"), args.out, budgets)


def report_selection(args, rest):
  from peft_jax.report import command

  command.selection(args.files, args.out)


def report_domain(args, overrides):
  from peft_jax.report import command

  config = read_config(args.config, overrides, "report domain")
  command.domain(config, args.source, args.kernel, args.pairs, args.images, args.out)


def read_config(given, overrides, verb="explain"):
  """The resolved config of "FILE.py:key=value" with `--config.KEY=VALUE` overrides.

  Raises FileNotFoundError or ValueError for what the user typed wrongly.
  """
  from absl import flags

  from peft_jax.train import config as config_lib

  config_lib.check_keys(overrides, config_lib.read(given))
  for typed in overrides:
    if typed.startswith("-") and not re.match(r"--?config\.", typed):
      raise ValueError(f"{verb} has no option {typed!r}; options look like --config.seed=1.")
  try:
    config, left = _overridden(["explain", f"--config={given}", *overrides])
  except (flags.Error, TypeError) as error:
    raise ValueError(f"{str(error).splitlines()[0]}.") from None
  if left:
    raise ValueError(f"{left[0]!r} is no option; options look like --config.seed=1.")
  return config_lib.resolve(config)


def _overridden(argv):
  """(config, what is no flag) of a command line, read as train.py reads its own."""
  from absl import flags
  from ml_collections import config_flags

  values, typed = flags.FlagValues(), sys.argv
  sys.argv = argv  # where config_flags looks for overrides
  try:
    config_flags.DEFINE_config_file("config", flag_values=values)
    left = values(argv)
  finally:
    sys.argv = typed
  return values.config, left[1:]


def open_task(args, loaded):
  """The Dataset of --task, or of the adapter's own task, as the adapter's model takes it."""
  from peft_jax import data

  how = loaded.header["preprocessing"]
  task = args.task or loaded.header["task"]
  if not task:
    raise ValueError(f"The adapter {args.adapter} names no task; give one with --task.")
  dataset = data.open(task, root=args.root, size=how["image_size"], resize=how["resize"])
  classes = len(loaded.labels)
  if dataset.num_classes != classes:
    raise ValueError(
      f"The task {task!r} has {dataset.num_classes} classes, but the adapter {args.adapter} was "
      f"trained for {classes} ({loaded.header['task'] or 'no task'})."
    )
  names = loaded.header["class_names"]
  if names and dataset.class_names and list(dataset.class_names) != names:
    raise ValueError(
      f"The task {task!r} has other classes than the adapter {args.adapter}: "
      f"{', '.join(dataset.class_names[:3])}, ... instead of {', '.join(names[:3])}, ..."
    )
  return dataset


def evaluate(args, rest):
  import peft_jax
  from peft_jax.train import evaluate as evaluation
  from peft_jax.train import shard

  if args.batch_size < 1:
    raise ValueError(f"--batch_size={args.batch_size} must be 1 or more.")
  loaded = peft_jax.load(args.adapter, args.base)
  dataset = open_task(args, loaded)
  split = dataset.split(args.split or dataset.eval_split)
  parallel = shard.parallel("jit")
  found = evaluation.evaluate(
    evaluation.predictor(loaded.tuned, loaded.header["preprocessing"]["normalize"], parallel),
    parallel.place(loaded.variables),
    split.images,
    split.labels,
    args.batch_size,
    parallel,
  )
  print(
    f"{dataset.name} {split.name}: accuracy {100 * found['accuracy']:.2f} % "
    f"({found['correct']} of {found['count']}), loss {found['loss']:.4f}"
  )


def predict(args, rest):
  import peft_jax

  if args.top < 1:
    raise ValueError(f"--top={args.top} must be 1 or more.")
  loaded = peft_jax.load(args.adapter, args.base)
  for path, ranked in zip(args.images, loaded.rank(args.images, args.top), strict=True):
    print(f"{path}: {', '.join(f'{label} {p:.3f}' for label, p in ranked)}")


def merge(args, rest):
  import peft_jax
  from peft_jax import adapter_file

  if not args.out.endswith((".safetensors", ".npz")):
    raise ValueError(f"--out={args.out} must end in .safetensors or .npz.")
  if args.timm and not args.out.endswith(".safetensors"):
    raise ValueError(f"--out={args.out} must end in .safetensors with --timm.")
  loaded = peft_jax.load(args.adapter, args.base)
  params = loaded.merged()
  images, what = _some_images(args, loaded)
  difference, largest = loaded.merging_error(images, params)
  adapter_file.save_merged(args.out, params, loaded.header, args.timm)
  print(
    f"{args.out}: merged weights change the logits of {len(images)} {what} images by at most "
    f"{difference:.2g} (largest logit {largest:.3g})"
  )


def peft_export(args, rest):
  from peft_jax import adapter_file, peft_file
  from peft_jax.weights import names

  train, header = adapter_file.read(args.adapter)
  tuned = adapter_file.build(header)
  model = header["model"]["name"]
  peft_file.write(args.folder, tuned, train, names.has_conv_mlp(model))
  print(
    f"{args.folder}: {peft_file.CONFIG} and {peft_file.ARRAYS}, for {header['base']['name']} in "
    f"timm.create_model({model!r}, num_classes={header['model']['num_classes']})"
  )


def peft_import(args, rest):
  import jax
  import numpy as np

  from peft_jax import adapter_file, data, models, peft_file
  from peft_jax import weights as weights_lib
  from peft_jax.data import transforms

  normalize = args.normalize or models.preset(args.model).normalize
  transforms.check(args.resize)
  data.normalize(np.zeros((1, 1, 1, 3), np.uint8), normalize)
  model = models.create(args.model, num_classes=0, image_size=args.image_size)
  tuned, train = peft_file.read(args.folder, model)
  classes = args.class_names.split(",") if args.class_names else None
  if classes and len(classes) != tuned.model.num_classes:
    raise ValueError(
      f"--class_names has {len(classes)} names, but {args.folder} has {tuned.model.num_classes} "
      "classes."
    )
  _, base = weights_lib.load(args.base, tuned.model, key=jax.random.key(0))
  adapter_file.save(
    args.out, train, tuned=tuned, base=base, model=args.model, resize=args.resize,
    normalize=normalize, task=args.task, class_names=classes, key=jax.random.key(0),
  )
  print(f"{args.out}: {tuned.methods[0]} and a head of {tuned.model.num_classes} classes, on "
        f"{args.base}; images are resized by {args.resize} and normalised as for {normalize}")


def weights(args, rest):
  from peft_jax.weights import command

  command.main([*args.arguments, *rest])


def _some_images(args, loaded):
  """(uint8 images, what they are): of the task where it is at hand, else random ones."""
  import numpy as np

  try:
    dataset = open_task(args, loaded)
    split = dataset.split(dataset.eval_split)
    return split.images(np.arange(min(CHECKED, len(split)))), f"{dataset.name} {split.name}"
  except (ValueError, OSError):
    if args.task or args.root:
      raise
    side = loaded.header["preprocessing"]["image_size"]
    random = np.random.default_rng(0)
    return random.integers(0, 256, (CHECKED, side, side, 3), np.uint8), "random"


if __name__ == "__main__":
  sys.exit(main())
