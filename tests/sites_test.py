"""What the table of sites says of every kind of layer, loop and mistake."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from peft_jax.sites import LINEAR, NORM, NoSiteError, is_head, select, sites

X = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32)


class Layers(nn.Module):
  """One layer of every kind."""

  @nn.compact
  def __call__(self, x, extra=None, *, train=False):
    x = nn.Conv(12, (3, 5), strides=2, name="conv")(x)
    x = nn.Conv(12, (3, 3), feature_group_count=3, name="grouped")(x)
    x = nn.Conv(24, (3, 3), feature_group_count=12, use_bias=False, name="depthwise")(x)
    x = nn.LayerNorm(name="norm")(x)
    x = nn.BatchNorm(use_running_average=True, name="batch_norm")(x)
    x = nn.DenseGeneral((4, 5), name="split")(x)
    x = nn.DenseGeneral(7, axis=(-2, -1), name="join")(x)
    x = nn.DenseGeneral(7, axis=-1, batch_dims=0, name="plain")(x)
    x = nn.DenseGeneral(5, axis=1, name="over_rows")(x)
    twice = nn.Dense(5, name="twice")
    x = twice(twice(x))
    return nn.Dense(3, name="head")(x)


def test_shapes_of_every_kind():
  table = sites(Layers(), X)
  assert list(table)[:3] == ["conv", "grouped", "depthwise"]
  assert list(table)[-2:] == ["head", ""]
  conv = table["conv"]
  assert (conv.kind, conv.x, conv.y, conv.stack) == (nn.Conv, (2, 8, 8, 6), (2, 4, 4, 12), ())
  assert dict(conv.params) == {"kernel": (3, 5, 6, 12), "bias": (12,)}
  fans = {path: (site.fan_in, site.fan_out) for path, site in table.items()}
  assert fans["conv"] == ((3, 5, 6), (12,))
  assert fans["grouped"] == ((3, 3, 4), (12,))
  assert fans["depthwise"] == ((3, 3, 1), (24,))
  assert fans["norm"] == ((), (12 * 2,))
  assert fans["split"] == ((24,), (4, 5))
  assert fans["join"] == ((4, 5), (7,))
  assert fans["twice"] == ((5,), (5,))
  inputs = {path: table[path].inputs for path in ("conv", "grouped", "depthwise", "join")}
  assert inputs == {"conv": 6, "grouped": 12, "depthwise": 12, "join": 20}


def test_only_layers_that_methods_understand_are_selected():
  chosen = select(sites(Layers(), X), ".*", LINEAR + NORM, head="head")
  assert list(chosen) == [
    "conv", "grouped", "depthwise", "norm", "split", "join", "plain", "twice"
  ]


def test_keyword_arguments_reach_the_model():
  assert sites(Layers(), X, None, train=True).keys() == sites(Layers(), X).keys()


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + nn.Dense(6, name="fc")(nn.LayerNorm(name="norm")(x))


class Loop(nn.Module):
  kind: str

  @nn.compact
  def __call__(self, x):
    if "scan" not in self.kind:
      block = nn.remat(Block) if self.kind == "remat" else Block
      for i in range(3):
        x = block(name=f"blocks_{i}")(x)
      return x
    scan = functools.partial(
      nn.scan, variable_axes={"params": 0}, split_rngs={"params": True}
    )
    step = scan(lambda block, x, _: (block(x), None), length=3)
    if self.kind == "scan":
      return step(Block(name="blocks"), x, None)[0]
    nested = scan(lambda block, x, _: step(block, x, None), length=2)
    return nested(Block(name="blocks"), x, None)[0]


def test_loops_give_every_module_once_without_ghosts():
  python, remat = (sites(Loop(kind), X) for kind in ("python", "remat"))
  assert [*python] == [*remat] and len(python) == 10
  assert {path: site.y for path, site in python.items()} == {
    path: site.y for path, site in remat.items()
  }
  scan = sites(Loop("scan"), X)
  assert set(scan) == {"blocks/norm", "blocks/fc", "blocks", ""}
  site = scan["blocks/fc"]
  assert site.stack == (3,) and dict(site.params) == {"kernel": (6, 6), "bias": (6,)}
  assert (site.fan_in, site.fan_out) == ((6,), (6,))


def test_a_scan_of_a_scan_stacks_twice():
  assert sites(Loop("scan of scan"), X)["blocks/fc"].stack == (2, 3)


def test_nothing_is_computed():
  class Huge(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(10**7, name="fc")(x)

  huge = jax.ShapeDtypeStruct((10**4, 10**7), jnp.float32)
  assert sites(Huge(), huge)["fc"].fan_in == (10**7,)


def test_patterns_match_whole_paths_and_leave_the_head_out():
  table = sites(Layers(), X)
  assert list(select(table, "conv|grouped", LINEAR)) == ["conv", "grouped"]
  with pytest.raises(NoSiteError, match="'con' selects none of the 8 sites of kind Dense"):
    select(table, "con", LINEAR, head="head", asker="LoRA")
  assert "head" in select(table, ".*", LINEAR) and "head" not in select(
    table, ".*", LINEAR, head="head"
  )
  assert list(select(table, ("head", "conv"), LINEAR, head="head")) == ["conv", "head"]


@pytest.mark.parametrize(
  "pattern, message",
  [
    ("dephtwise", "'dephtwise' selects none(.|\n)*depthwise  Conv"),
    (("conv", "dephtwise"), "'dephtwise' selects none(.|\n)*depthwise  Conv"),
    ((), "selects none"),
    ("(", "not a regular expression"),
    (("over_rows",), "'over_rows' selects none"),
    ("batch_norm", "selects none"),
  ],
)
def test_mistakes_say_what_is_near(pattern, message):
  with pytest.raises(NoSiteError, match=message):
    select(sites(Layers(), X), pattern, LINEAR, asker="LoRA")


def test_a_norm_without_parameters_is_no_site():
  class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.LayerNorm(use_scale=False, use_bias=False, name="bare")(x)
      return nn.LayerNorm(name="norm")(x)

  assert list(select(sites(Plain(), X), ".*", NORM)) == ["norm"]


def test_the_head_is_a_pattern_of_module_paths():
  assert is_head("head", "head") and is_head("head/norm", "head") and is_head("a/fc", "a|b")
  assert not is_head("header", "head") and not is_head("x/head", "head") and not is_head("x", "")
