"""Writes docs/methods: a page for every method, from its docstrings, its shapes and two folders.

    python docs/render.py

What a docstring of a method is made of, chunks divided by blank lines:

    NAME: summary
        an indented formula                four spaces
    Variables ...:                         with lines indented by two, kept as they stand
    Label: text                            LABELS, a section; continued at two spaces, where lines
    field: text                              that begin with "- " are a list; fields are options
    anything else                          a paragraph

A class adds to the docstring of its module, and takes precedence. Counts and places come from the
shapes of each backbone, what a step costs from benchmarks/README.md, configs from their folder.
"""

import collections
import dataclasses
import functools
import inspect
import math
import pathlib
import re
import sys

from peft_jax import explain, models
from peft_jax.files import replacing
from peft_jax.methods import METHODS
from peft_jax.selection.roles import roles
from peft_jax.sites import sites
from peft_jax.tuned import Tuned

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/methods"
BACKBONES = {"vit_b16": "ViT-B/16", "swin_b": "Swin-B", "convnext_b": "ConvNeXt-B"}
LABELS = ("Source", "Start", "Merge", "Where", "Count", "Cost", "Releases")
ITEM = re.compile(r"(\w+(?:, \w+)*): (.*)")


# --- docstrings ---------------------------------------------------------------------------------


@dataclasses.dataclass
class Text:
  """A docstring taken apart.

  title, summary: of the first line, in front of the colon and behind it.
  formulas: code; variables: [(sentence, code)]; items: {label or field: text}, the lines of a text
    as they stand, without their indent.
  paragraphs: of the module, and notes: of the class.
  """

  title: str
  summary: str
  formulas: list[str] = dataclasses.field(default_factory=list)
  variables: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  paragraphs: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  items: dict[str, str] = dataclasses.field(default_factory=dict)


def parse(docstring):
  """The Text of a docstring."""
  summary, *chunks = inspect.cleandoc(docstring).split("\n\n")
  title, _, summary = summary.partition(": ")
  text = Text(title, summary)
  for chunk in chunks:
    lines = chunk.splitlines()
    indented = [line for line in lines if line.startswith("  ")]
    if all(line.startswith("    ") for line in lines):
      text.formulas.append(inspect.cleandoc("\n" + chunk))
    elif lines[0].startswith("Variables"):
      flush = [line for line in lines if line not in indented]
      text.variables.append(("\n".join(flush), inspect.cleandoc("\n" + "\n".join(indented))))
    elif ITEM.match(chunk):
      for line in lines:
        if found := ITEM.match(line):
          name, text.items[name] = found[1], found[2]
        else:
          text.items[name] += "\n" + line.removeprefix("  ")
    else:
      text.paragraphs.append(chunk)
  return text


def described(name):
  """The Text of a method: its class, over its base classes (whose fields count), and its module."""
  cls = METHODS[name]
  module = sys.modules[cls.__module__]
  own, about = parse(cls.__doc__), parse(module.__doc__)
  own.notes, own.paragraphs = own.paragraphs, []
  own.items = {**about.items, **own.items}
  if sum(other.__module__ == cls.__module__ for other in METHODS.values()) == 1:
    own = dataclasses.replace(
      about, items=own.items, variables=own.variables, notes=own.notes)
  for base in cls.__mro__[1:]:
    if dataclasses.is_dataclass(base):
      own.items = {**own.items, **{**parse(base.__doc__).items, **own.items}}
  return own


# --- Markdown -----------------------------------------------------------------------------------


def prose(text):
  """Text as Markdown in one line: nothing in it is markup, but for code and arXiv's numbers."""
  parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
  parts[::2] = [re.sub(r"([*<|\\])", r"\\\1", part) for part in parts[::2]]
  return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", "".join(parts))


def written(text):
  """Text of an item as a section; its lines that begin with "- " are a list."""
  lead, *bullets = re.split(r"(?m)^- ", text)
  chunks = [prose(lead[:1].upper() + lead[1:]), "\n".join(f"- {prose(b)}" for b in bullets)]
  return "\n\n".join(filter(None, chunks))


def code(text):
  """Text as code in a cell of a table, where a bar is no border."""
  return "`" + str(text).replace("|", r"\|") + "`"


def fenced(text):
  return f"```text\n{text}\n```"


def table(head, rows):
  """A Markdown table; head: {title: "---" or "---:"}."""
  lines = [head, head.values(), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |")


def link(path, label=None):
  """A link to a file of this project, given from its root, for a page in FOLDER."""
  return f"[{label or path}](../../{path})"


# --- numbers ------------------------------------------------------------------------------------


@functools.cache
def bare(backbone, **options):
  """(a backbone with a head for ten classes, its sites)."""
  model = models.create(backbone, num_classes=10, **options)
  return model, sites(model, models.images(model))


@functools.cache
def trained(name, backbone):
  """[(places, what is trained there, number of sites, numbers)], without the head's last layer.

  places: "stages_*/blocks_*/attn/{q, k}", where * stands for all indices that the model has.
  Of a method that must be chosen first: what it may choose from, by role.
  """
  method, groups = METHODS[name](), {}
  model, places = bare(backbone, **method.builds)
  rows = candidates(places) if is_chosen(name) else explain.rows(Tuned(model, (method,), places))
  for row in rows:
    if row.site not in ("head", "head/out"):
      leaves = tuple(leaf.partition(" ")[0] for leaf in row.trained)
      groups.setdefault(leaves, []).append(row)
  paths = roles(places) if is_chosen(name) else places
  everywhere, found = collections.Counter(map(starred, paths)), []
  for leaves, rows in groups.items():
    here = collections.Counter(starred(row.site) for row in rows)
    whole = {path for path in here if here[path] == everywhere[path]}
    paths = [starred(row.site) if starred(row.site) in whole else row.site for row in rows]
    found.append((braced(paths), leaves, len(rows), sum(row.count for row in rows)))
  return found


def is_chosen(name):
  """Whether even the number of what a method trains depends on a choice."""
  return getattr(METHODS[name], "chosen", ()) is None


def candidates(places):
  """Rows of what SPT may choose from, as explain.rows has what is trained."""
  rows = []
  for path, role in roles(places).items():
    site, _, leaf = path.rpartition("/")
    size = math.prod(dict(places[site].params)[leaf])
    rows.append(explain.Row(path, "", "", (role,), size))
  return rows


def starred(path):
  return re.sub(r"\b(blocks|stages)_\d+", r"\1_*", path)


def braced(paths):
  """["a/b", "a/c", "d"] as ["a/{b, c}", "d"], without repetitions."""
  folders = {}
  for path in dict.fromkeys(paths):
    folder, slash, name = path.rpartition("/")
    alone = "" if folder else name
    folders.setdefault((folder + slash, alone), []).append(name or "(the model)")
  return [folder + (names[0] if len(names) == 1 else "{" + ", ".join(names) + "}")
          for (folder, _), names in folders.items()]


def total(name, backbone):
  return sum(group[-1] for group in trained(name, backbone))


@functools.cache
def step_costs():
  """{label: step / F}, as benchmarks/README.md has them."""
  rows = re.findall(r"(?m)^\| (\w+(?: \(.*?\))?) \| [\d,]+ \| (\d+\.\d+) \|",
                    (ROOT / "benchmarks/README.md").read_text())
  return dict(rows)


def costs_of(name):
  """The entries of `step_costs` that are of a method: "vpt (50 prompts)" and "vpt_shallow"."""
  return {label: ratio for label, ratio in step_costs().items()
          if re.match(rf"{name}(_| |$)", label)}


def merges(name):
  cls = METHODS[name]
  return "yes" if cls.weights else "no" if cls.call else ""


# --- pages --------------------------------------------------------------------------------------


def page(name):
  """The Markdown of one method's page."""
  cls, text = METHODS[name], described(name)
  source = f"{cls.__module__.replace('.', '/')}.py"
  items = collections.defaultdict(str, text.items)
  if steps := costs_of(name):
    named = ", ".join(f"{label} {ratio}" for label, ratio in steps.items())
    items["Cost"] += (" One training step on ViT-B/16, in forward passes of the plain model: "
                      f"{steps[name] if [*steps] == [name] else named}.")
  lines = [
    f"# {text.title}",
    f"{prose(text.summary[0].upper() + text.summary[1:])}"
    f" `--config.methods={name}`, or `peft_jax.{cls.__name__}()` in `Tuned`.",
    *(fenced(formula) for formula in text.formulas),
    *(prose(paragraph) for paragraph in text.paragraphs),
    "\n".join(f"- **{label}:** {prose(items[label])}"
              for label in ("Source", "Start", "Merge", "Count", "Cost")),
    "## Where it sits",
    written(items["Where"]),
    places_table(name),
    *options(name, text),
    "## The released code",
    written(items["Releases"]),
    "## Files",
    " · ".join(filter(None, [link(source), configs(name), link("benchmarks/README.md"),
                             "[all methods](README.md)"])),
  ]
  return "\n\n".join(lines) + "\n"


def places_table(name):
  rows = []
  for backbone, label in BACKBONES.items():
    groups, numbers = trained(name, backbone), total(name, backbone)
    share = f"**{label}** ({100 * numbers / total('full', backbone):.2f} %)"
    if len(groups) != 1:
      rows.append([share, f"**{numbers:,}**", "in all" if groups else "nothing", ""])
    for places, leaves, count, numbers in groups:
      where = ", ".join(map(code, places)).replace("`(the model)`", "the model itself")
      first = [share, f"**{numbers:,}**"] if len(groups) == 1 else ["", f"{numbers:,}"]
      rows.append([*first, ", ".join(map(code, leaves)), f"{count}: {where}"])
  head = {"": "---", "numbers": "---:", "trained": "---", "sites": "---"}
  if is_chosen(name):
    head = {"": "---", "numbers": "---:", "role": "---", "parameters": "---"}
    return ("What is chosen from: `matrix` may be given a module, `vector` be trained whole; "
            "of the others single entries are.\n\n" + table(head, rows))
  return ("By default, beside the head's last layer, which every method trains:\n\n"
          + table(head, rows))


def options(name, text):
  """The chunks on variables and fields; none for a method without either."""
  cls, chunks, rows = METHODS[name], [], []
  for sentence, block in text.variables:
    chunks += [prose(sentence), fenced(block)]
  chunks += map(prose, text.notes)
  fields = {f.name: f.default for f in dataclasses.fields(cls)}
  if not cls.collection:
    fields = {key: value for key, value in fields.items() if key not in ("sites", "collection")}
  for names, sentence in text.items.items():
    here = [field for field in names.split(", ") if field in fields]
    if here:
      defaults = dict.fromkeys(code(shown(fields[field])) for field in here)
      rows.append([", ".join(map(code, here)), ", ".join(defaults), prose(sentence)])
  if rows:
    first = rows[0][0].partition(",")[0].strip("`")
    chunks += [f"Set as `--config.{name}.{first}=`, or as arguments:",
               table({"option": "---", "default": "---", "": "---"}, rows)]
  title = "## Variables and options" if text.variables else "## Options"
  return [title, *chunks] if chunks else []


def shown(value):
  return f'"{value}"' if isinstance(value, str) else repr(value)


def configs(name):
  """Links to the configs SUITE_NAME.py and SUITE_NAME_VARIANT.py."""
  files = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
  return " · ".join(link(f"configs/{file}", file) for file in files
                   if re.fullmatch(rf"[^_]+_{name}(_.*)?\.py", file))


def index():
  """The Markdown of the list of all methods."""
  rows = []
  for name in METHODS:
    cost = next(iter(costs_of(name).values()), "")
    rows.append([
      f"[{name}]({name}.md)", prose(described(name).summary.removesuffix(".")),
      *("its budget" if is_chosen(name) else f"{total(name, backbone):,}"
        for backbone in BACKBONES), merges(name),
      cost,
    ])
  head = {"method": "---", "what it is": "---",
          **dict.fromkeys(BACKBONES.values(), "---:"), "merges": "---", "step": "---:"}
  return f"""# Methods

Trained numbers by default, the head's last layer apart. *merges*: whether plain weights give the
same outputs; blank where it is plain weights that are trained. *step*: one training step on
ViT-B/16 in forward passes of the plain model, see {link("benchmarks/README.md")}.

{table(head, rows)}

`python docs/render.py` writes these pages from the methods' docstrings and shapes.
"""


def pages():
  """{file name in FOLDER: Markdown}."""
  return {"README.md": index(), **{f"{name}.md": page(name) for name in METHODS}}


def main():
  for file, text in pages().items():
    with replacing(FOLDER / file) as out:
      out.write(text.encode())
    print(FOLDER / file)


if __name__ == "__main__":
  main()
