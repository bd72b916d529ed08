"""The pages of the methods are what their docstrings and shapes give, and nothing is lost."""

import collections
import dataclasses
import importlib.util
import pathlib
import re

import pytest
from markdown_it import MarkdownIt

import peft_jax
from peft_jax import count
from peft_jax.methods import METHODS
from peft_jax.tuned import Tuned

ROOT = pathlib.Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("render", ROOT / "docs/render.py")
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)

PAGES = sorted((ROOT / "docs/methods").glob("*.md"))
WRITTEN = [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *PAGES]


def names(paths):
  return [str(path.relative_to(ROOT)) for path in paths]


def test_there_is_a_page_for_every_method():
  assert {path.name for path in PAGES} == {"README.md", *(f"{name}.md" for name in METHODS)}


@pytest.mark.parametrize("name", METHODS)
def test_a_stored_page_is_what_is_rendered(name):
  stale = f"run `python docs/render.py`: docs/methods/{name}.md is not what it writes"
  assert (ROOT / f"docs/methods/{name}.md").read_text() == render.page(name), stale


def test_the_stored_list_is_what_is_rendered():
  assert (ROOT / "docs/methods/README.md").read_text() == render.index(), "run docs/render.py"


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_all_parts(name):
  """Every label of the docstring and every option has a text, and the page shows it."""
  text, page = render.described(name), (ROOT / f"docs/methods/{name}.md").read_text()
  fields = {field.name for field in dataclasses.fields(METHODS[name])}
  assert getattr(peft_jax, METHODS[name].__name__) is METHODS[name]
  documented = {part for names in text.items for part in names.split(", ")}
  assert documented >= {*render.LABELS, *fields}
  assert documented <= {*render.LABELS, *fields}, "a label that no section shows"
  assert text.formulas and all(formula in page for formula in text.formulas)
  for label in ("Source", "Start", "Merge", "Count", "Cost"):
    assert f"\n- **{label}:** {render.prose(text.items[label])}" in page
  for backbone in ("ViT-B/16", "Swin-B", "ConvNeXt-B"):
    assert f"\n| **{backbone}** (" in page
  assert re.search(r"\]\(\.\./\.\./peft_jax/methods/\w+\.py\)", page)
  if METHODS[name].collection:
    assert text.variables and all(f"\n| `{field}`" in page or f", `{field}`" in page
                                  for field in fields)
  if render.costs_of(name):
    assert re.search(r"forward passes of the plain model: .*\d\.\d{3}\.\n", page)


@pytest.mark.parametrize("backbone", render.BACKBONES)
def test_numbers_are_those_that_are_counted(backbone):
  model, places = render.bare(backbone)
  last = model.num_classes * (1 + places["head"].fan_in[0])
  for name, cls in METHODS.items():
    if render.is_chosen(name):
      continue
    model, places = render.bare(backbone, **cls().builds)
    counted = count.count(Tuned(model, (cls(),), places))["trained"]
    assert render.total(name, backbone) == counted - last
    every = [group[2] for group in render.trained(name, backbone)]
    assert sum(every) <= len(places) and all(every)


def test_what_spt_may_choose_from():
  """The 85,056,000 candidates of its released code: 12 blocks and the last norm."""
  assert render.total("spt", "vit_b16") == 12 * 7_087_872 + 1536
  assert not any(map(render.is_chosen, METHODS.keys() - {"spt"}))
  by_kind = {leaves: numbers for _, leaves, _, numbers in render.trained("spt", "vit_b16")}
  assert by_kind == {("matrix",): 84_934_656, ("vector",): 121_344}


@pytest.mark.parametrize("path", WRITTEN, ids=names(WRITTEN))
def test_links_to_files_lead_somewhere(path):
  targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
  assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_markdown_is_as_meant(path):
  """No text of a docstring turns into markup; all rows of a table have its columns."""
  tokens = MarkdownIt().enable(["table", "strikethrough"]).parse(path.read_text())
  inline = collections.Counter(
    child.type for token in tokens for child in token.children or [])
  allowed = {"text", "softbreak", "code_inline", "link_open", "link_close", "strong_open",
             "strong_close", "text_special"}
  if path.name == "README.md":
    allowed |= {"em_open", "em_close"}
  assert set(inline) <= allowed
  assert not {token.type for token in tokens} & {"html_block", "code_block", "ordered_list_open"}
  tables = re.findall(r"(?m)(?:^\|.*\n)+", path.read_text())
  assert len(tables) == sum(token.type == "table_open" for token in tokens) > 0
  for rows in tables:
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()}
    assert len(columns) == 1


def test_docstrings_are_taken_apart():
  text = render.parse("""NAME: what it is.

      y = x
        + 1

  Source: Somebody 2020, arXiv:2001.00001.
  Where: here:
    - ViT: there,
      and there.
    - Swin: nowhere.

  A paragraph: of text.

  Variables at a site,
  or two:
    a: (n,)   zeros

  rank, alpha: of it; 1 or
    more.
  """)
  assert (text.title, text.summary) == ("NAME", "what it is.")
  assert text.formulas == ["y = x\n  + 1"]
  assert text.variables == [("Variables at a site,\nor two:", "a: (n,)   zeros")]
  assert text.paragraphs == ["A paragraph: of text."]
  assert text.items == {
    "Source": "Somebody 2020, arXiv:2001.00001.",
    "Where": "here:\n- ViT: there,\n  and there.\n- Swin: nowhere.",
    "rank, alpha": "of it; 1 or\nmore.",
  }
  assert render.written(text.items["Where"]) == (
    "Here:\n\n- ViT: there, and there.\n- Swin: nowhere.")


def test_text_stays_text():
  assert render.prose("a * b <- |c|, `d|*`\nas arXiv:2001.00001") == (
    r"a \* b \<- \|c\|, `d|*` as [arXiv:2001.00001](https://arxiv.org/abs/2001.00001)")
  assert render.code("a|b") == r"`a\|b`"


def test_places_are_short():
  assert render.starred("stages_0/blocks_12/attn/q") == "stages_*/blocks_*/attn/q"
  assert render.starred("head/hidden_0") == "head/hidden_0"
  assert render.braced(["stem", "a/b", "a/c", "d/e", "a/b", "norm"]) == [
    "stem", "a/{b, c}", "d/e", "norm"]


def test_only_all_indices_are_a_star():
  """Partial-1 trains one block of twelve, the adapters all."""
  assert render.trained("partial", "vit_b16")[0][0][0] == "encoder/blocks_11/attn/norm"
  assert render.trained("adapter", "vit_b16") == [
    (["encoder/blocks_*/mlp"],
     ("adapter.down", "adapter.down_bias", "adapter.up", "adapter.up_bias"), 12, 156_768)]


def test_step_costs_are_those_of_the_benchmark():
  assert render.step_costs()["bias"] == "2.025" and "forward" not in render.step_costs()
  assert set(render.costs_of("vpt")) == {"vpt (50 prompts)", "vpt_shallow (50 prompts)"}
  assert set(render.costs_of("adapter")) == {"adapter (width 8)"}
