"""How the engine attaches methods: order, loops, collections, keys, types, foreign models."""

import dataclasses
import functools
import importlib.util
import pathlib
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import models, partition
from peft_jax.method import Method
from peft_jax.methods import SAN, SSF, LoRA, Wire
from peft_jax.sites import NoSiteError, sites
from peft_jax.tree import flat, nest, under
from peft_jax.tuned import Tuned, join

spec = importlib.util.spec_from_file_location(
  "third_party_models", pathlib.Path(__file__).parent / "third_party_models.py"
)
third_party = importlib.util.module_from_spec(spec)
spec.loader.exec_module(third_party)


def perturbed(tree, seed):
  """Every floating leaf moved by N(0, 0.3^2)."""
  rng = np.random.default_rng(seed)

  def move(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    return jnp.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape).astype(leaf.dtype))

  return jax.tree.map(move, jax.device_get(tree))


def tune(model, x, *methods, head="head", like=None):
  """(tuned, variables): all perturbed; the parameters are those of `like` where it is given."""
  shapes = jax.eval_shape((like or model).init, jax.random.key(0), x)["params"]
  zeros = nest({
    path: np.full(leaf.shape, path.endswith("scale"), leaf.dtype)
    for path, leaf in flat(shapes).items()
  })
  params = perturbed(zeros, 1)
  tuned = Tuned(model, methods, sites(model, x), head)
  return tuned, {"params": params, **perturbed(tuned.init(jax.random.key(2), params), 3)}


# LLVM's optimisations cost more than they bring here.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def three(tuned, variables, x):
  """Outputs of the tuned model, of the backbone, and of the merged backbone."""
  plain = lambda params: tuned.model.apply({"params": params}, x)  # noqa: E731
  return tuned.apply(variables, x), plain(variables["params"]), plain(tuned.merge(variables))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def quick(tuned, variables, x, key=None):
  return tuned.apply(variables, x, rngs=None if key is None else {"tuning": key})


def assert_close(actual, expected, rtol=1e-5):
  scale = float(jnp.max(jnp.abs(expected)))
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * scale)


def assert_moved(actual, base):
  assert float(jnp.max(jnp.abs(actual - base))) > 1e-2 * float(jnp.max(jnp.abs(base)))


class Two(nn.Module):
  """x -> fc1 -> relu -> fc2, and a head."""

  use_bias: bool = True
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x):
    dense = functools.partial(nn.Dense, use_bias=self.use_bias, dtype=self.dtype)
    x = nn.relu(dense(6, name="fc1")(x))
    return dense(3, name="head")(dense(5, name="fc2")(x))


X = jax.random.normal(jax.random.key(9), (7, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Power(Method):
  """kernel * exp(p): known only as a change of weights."""

  collection: str = "power"

  def init(self, site, key, params):
    return {"p": jnp.zeros(())}

  def weights(self, site, params, v):
    return {**params, "kernel": params["kernel"] * jnp.exp(v["p"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter(Method):
  """y + tanh(y a) b: known only as a call."""

  collection: str = "adapter"

  def init(self, site, key, params):
    (n,) = site.fan_out
    return {"a": jax.random.normal(key, (n, 2)), "b": jnp.zeros((2, n))}

  def call(self, site, v, params, layer, x, rng):
    y = layer(params, x)
    return y + jnp.tanh(y @ v["a"]) @ v["b"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picked(Method):
  """One value per output added to the kernel at a row that an integer leaf names."""

  collection: str = "picked"

  def init(self, site, key, params):
    (n,) = site.fan_out
    return {"value": jnp.zeros(n), "row": jnp.ones(n, jnp.int32)}

  def weights(self, site, params, v):
    kernel = params["kernel"]
    return {**params, "kernel": kernel.at[v["row"], jnp.arange(kernel.shape[1])].add(v["value"])}


# The order of methods.


def test_the_first_method_acts_closest_to_the_weights():
  lora, ssf = LoRA(rank=2, alpha=2.0, sites="fc1"), SSF(sites="fc1")
  inside, variables = tune(Two(), X, lora, ssf)
  outside = dataclasses.replace(inside, methods=(ssf, lora))
  p = variables["params"]
  a, b = (variables["lora"]["fc1"][name] for name in "ab")
  scale, shift = (variables["ssf"]["fc1"][name] for name in ("scale", "shift"))
  y = X @ p["fc1"]["kernel"] + p["fc1"]["bias"][None]

  def rest(y):
    y = jax.nn.relu(y) @ p["fc2"]["kernel"] + p["fc2"]["bias"][None]
    return y @ p["head"]["kernel"] + p["head"]["bias"][None]

  first = rest(scale[None] * (y + X @ a @ b) + shift[None])
  second = rest(scale[None] * y + shift[None] + X @ a @ b)
  assert_moved(first, rest(y))
  assert_moved(first, second)
  for tuned, expected in ((inside, first), (outside, second)):
    assert_close(tuned.apply(variables, X), expected)
    assert_close(tuned.model.apply({"params": tuned.merge(variables)}, X), expected)


@pytest.mark.parametrize(
  "methods",
  [
    (SSF(), Power()),
    (Power(), SSF()),
    (LoRA(rank=2), Power(), SSF()),
    (SSF(), LoRA(rank=2), Power(), Picked()),
    (Picked(), SSF(), LoRA(rank=2)),
  ],
  ids=lambda methods: "-".join(type(method).__name__ for method in methods),
)
def test_stacks_that_fold_a_part_merge_as_they_apply(methods):
  tuned, variables = tune(Two(), X, *methods)
  y = tuned.apply(variables, X)
  assert_moved(y, tuned.model.apply({"params": variables["params"]}, X))
  assert_close(tuned.model.apply({"params": tuned.merge(variables)}, X), y)


def test_an_adapter_wraps_what_lies_below_it():
  tuned, variables = tune(Two(), X, Power(), LoRA(rank=2), Adapter(sites="fc2"))
  y = tuned.apply(variables, X)
  below = dataclasses.replace(tuned, methods=tuned.methods[:2])
  assert_moved(y, below.apply(variables, X))
  p = below.merge(variables)
  v = variables["adapter"]["fc2"]
  fc2 = jax.nn.relu(X @ p["fc1"]["kernel"] + p["fc1"]["bias"][None]) @ p["fc2"]["kernel"]
  fc2 = fc2 + p["fc2"]["bias"][None]
  fc2 = fc2 + jnp.tanh(fc2 @ v["a"]) @ v["b"]
  assert_close(y, fc2 @ p["head"]["kernel"] + p["head"]["bias"][None])


def test_a_call_can_neither_be_merged_nor_lie_below_a_change_of_weights():
  tuned, variables = tune(Two(), X, Adapter())
  with pytest.raises(ValueError, match="Adapter at fc1 is no change of weights"):
    tuned.merge(variables)
  tuned, variables = tune(Two(), X, Adapter(), Power())
  with pytest.raises(ValueError, match="Adapter at fc1 is no change of weights"):
    tuned.apply(variables, X)


@pytest.mark.parametrize(
  "method", [SSF(), SAN(mode="nt", shift=True)], ids=lambda method: type(method).__name__
)
def test_a_shift_needs_a_bias_to_be_folded_into(method):
  tuned, variables = tune(Two(use_bias=False), X, method)
  assert_moved(
    tuned.apply(variables, X), tuned.model.apply({"params": variables["params"]}, X)
  )
  message = "would change 'bias' of fc1 from nothing to \\(6,\\): it cannot fold"
  with pytest.raises(ValueError, match=message):
    tuned.merge(variables)
  folded, variables = tune(Two(use_bias=False), X, method, Power())
  with pytest.raises(ValueError, match=message):
    folded.apply(variables, X)


def test_a_fold_finishes_a_merge_that_no_site_can_do_alone():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Carried(Method):
    """Scales fc1's output, and finds room for the scale in fc2's rows alone (relu, scale > 0)."""

    collection: str = "carried"
    sites: str = "fc1"

    def init(self, site, key, params):
      return {"log": jnp.zeros(site.fan_out)}

    def weights(self, site, params, v):
      return params

    def call(self, site, v, params, layer, x, rng):
      return layer(params, x) * jnp.exp(v["log"])[None]

    def fold(self, params, tree):
      fc2 = params["fc2"]
      kernel = jnp.exp(tree["fc1"]["log"])[:, None] * fc2["kernel"]
      return {**params, "fc2": {**fc2, "kernel": kernel}}

  for methods in ((Carried(),), (Carried(), SSF(sites="fc2")), (SSF(sites="fc2"), Carried())):
    tuned, variables = tune(Two(), X, *methods)
    y = tuned.apply(variables, X)
    assert_moved(y, tuned.model.apply({"params": variables["params"]}, X))
    merged = tuned.merge(variables)
    assert_close(tuned.model.apply({"params": merged}, X), y)
    assert jax.tree.structure(merged) == jax.tree.structure(variables["params"])


def test_merge_and_apply_leave_the_variables_as_they_are():
  tuned, variables = tune(Two(), X, SSF(), LoRA(rank=2))
  before = jax.device_get(variables)
  tuned.merge(variables)
  tuned.apply(variables, X)
  jax.tree.map(np.testing.assert_array_equal, variables, before)


# Loops.


def vit(loop="python", **more):
  return models.ViT(
    num_classes=5, width=12, depth=3, heads=2, patch=8, image_size=16, layer_scale=0.5, loop=loop,
    **more,
  )


IMAGES = jax.random.normal(jax.random.key(8), (2, 16, 16, 3))


@pytest.mark.parametrize("loop", ["remat", "scan", "scan_remat"])
def test_a_scale_crosses_from_block_to_block_in_every_loop(loop):
  """Kept in Python it would leak a tracer under remat and be lost under scan."""
  tuned, variables = tune(vit(), IMAGES, SAN(qkv_source="prev_fc2", recal="diag_bias"))
  moved = flat(variables)
  path = "san/encoder/blocks_1/mlp/fc2/scale"
  moved[path] = moved[path] * 1.5
  moved = nest(moved)
  assert_moved(quick(tuned, moved, IMAGES), quick(tuned, variables, IMAGES))
  looped = Tuned(vit(loop), tuned.methods, sites(vit(loop), IMAGES))
  for values in (variables, moved):
    stacked = models.stack_blocks(values) if "scan" in loop else values
    assert_close(quick(looped, stacked, IMAGES), quick(tuned, values, IMAGES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(Method):
  """Tells a listener of every call; a scan's body is traced more often than it has sites."""

  collection: str = "counted"
  heard: ClassVar[list[str]] = []

  def init(self, site, key, params):
    return {"a": jnp.zeros(site.fan_out)}

  def call(self, site, v, params, layer, x, rng):
    self.heard.append((site.path, x.ndim, v["a"].shape))
    return layer(params, x)


def test_a_method_never_sees_the_ghosts_and_axes_of_a_loop():
  heard = {}
  for loop in ("python", "scan_remat"):
    Counted.heard.clear()
    tuned, variables = tune(vit(loop), IMAGES, Counted(sites=".*/fc1"))
    tuned.apply(variables, IMAGES)
    heard[loop] = {(path.rpartition("blocks")[2][-7:], *more) for path, *more in Counted.heard}
    assert {path for path, *_ in Counted.heard} == {p for p in tuned.table if p.endswith("fc1")}
  assert heard["python"] == heard["scan_remat"] == {("mlp/fc1", 2, (48,))}


class Hiding(nn.Module):
  """A scan that lifts "params" and nothing else."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6, name="stem")(x)
    scan = nn.scan(
      lambda layer, x, _: (x + nn.relu(layer(x)), None),
      variable_axes={"params": 0}, split_rngs={"params": True}, length=3,
    )
    return nn.Dense(3, name="head")(scan(nn.Dense(6, name="layers"), x, None)[0])


@pytest.mark.parametrize(
  "method",
  [LoRA(rank=2), SSF(), SAN(mode="nt"), SAN(wiring=(Wire("layers", ("stem",)),))],
  ids=["lora", "ssf", "nt", "san"],
)
def test_a_scan_that_hides_collections_is_an_error_and_merging_its_way_out(method):
  tuned, variables = tune(Hiding(), X, method)
  assert tuned.table["layers"].stack == (3,)
  with pytest.raises(NoSiteError, match="1 of 2 sites never ran, such as 'layers'.*tuned.merge"):
    tuned.apply(variables, X)
  merged = tuned.merge(variables)
  x = X @ merged["stem"]["kernel"] + merged["stem"]["bias"][None]
  for i in range(3):
    own = {name: leaf[i] for name, leaf in variables["params"]["layers"].items()}
    derived = under("layers", tuned.derived(variables)[method.collection])
    values = {name: leaf[i] for name, leaf in derived.items()}
    layer = tuned.bound[0][0].weights(tuned.table["layers"], own, values)
    x = x + jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
  expected = x @ merged["head"]["kernel"] + merged["head"]["bias"][None]
  y = tuned.model.apply({"params": merged}, X)
  assert_moved(y, tuned.model.apply({"params": variables["params"]}, X))
  assert_close(y, expected)


def test_a_module_called_twice_is_tuned_twice():
  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      layer = nn.Dense(4, name="fc")
      return layer(nn.relu(layer(x)))

  tuned, variables = tune(Twice(), X, SSF(), LoRA(rank=2))
  y = tuned.apply(variables, X)
  assert_moved(y, tuned.model.apply({"params": variables["params"]}, X))
  assert_close(tuned.model.apply({"params": tuned.merge(variables)}, X), y)


def test_a_site_that_the_call_skips_is_an_error():
  class Branch(nn.Module):
    @nn.compact
    def __call__(self, x, deep=True):
      shallow, deeper = nn.Dense(4, name="shallow"), nn.Dense(4, name="deeper")
      return deeper(shallow(x)) if deep else shallow(x)

  tuned, variables = tune(Branch(), X, SSF())
  assert tuned.apply(variables, X).shape == (7, 4)
  with pytest.raises(NoSiteError, match="1 of 2 sites never ran, such as 'deeper'"):
    tuned.apply(variables, X, deep=False)


# jit and collections.


def test_jit_never_serves_a_stale_method():
  tuned, variables = tune(Two(), X, LoRA(rank=2, alpha=1.0))
  double = dataclasses.replace(tuned, methods=(LoRA(rank=2, alpha=2.0),))
  outer = jax.jit(tuned.model.apply)
  base = outer({"params": variables["params"]}, X)
  run = jax.jit(lambda tuned, variables, x: tuned.apply(variables, x), static_argnums=0)
  one, two = run(tuned, variables, X), run(double, variables, X)
  assert_moved(one, base)
  assert_moved(two, one)
  assert_close(one, tuned.apply(variables, X))
  assert_close(two, double.apply(variables, X))
  np.testing.assert_array_equal(outer({"params": variables["params"]}, X), base)
  assert_close(jax.jit(double.apply)(variables, X), two)


def test_a_collection_cannot_be_forgotten():
  tuned, variables = tune(Two(), X, LoRA(rank=2))
  # Linen ignores a collection it does not know of: this is why apply checks.
  base = tuned.model.apply({"params": variables["params"]}, X)
  np.testing.assert_array_equal(tuned.model.apply(variables, X), base)
  assert_moved(tuned.apply(variables, X), base)
  with pytest.raises(ValueError, match="lora/fc1/. is missing; this model and method need"):
    tuned.apply({"params": variables["params"]}, X)


def test_a_collection_has_one_owner():
  table = sites(Two(), X)
  with pytest.raises(ValueError, match="Two methods claim the collection 'lora'"):
    Tuned(Two(), (LoRA(rank=1), LoRA(rank=2)), table)
  with pytest.raises(ValueError, match="collection 'params'"):
    Tuned(Two(), (LoRA(rank=1, collection="params"),), table)
  tuned, variables = tune(Two(), X, LoRA(rank=1), LoRA(rank=2, collection="more"))
  y = tuned.apply(variables, X)
  assert {"params", "lora", "more"} == variables.keys()
  assert_close(tuned.model.apply({"params": tuned.merge(variables)}, X), y)


def test_another_rank_or_shape_is_an_error():
  tuned, _ = tune(Two(), X, LoRA(rank=1))
  _, other = tune(Two(), X, LoRA(rank=3))
  for use in (tuned.check, tuned.merge, lambda variables: tuned.apply(variables, X)):
    with pytest.raises(ValueError, match=r"lora/fc1/. is \(.*\); this model and .* need \(.*\)"):
      use(other)
  tuned, variables = tune(Two(), X, SSF())
  variables["ssf"]["fc1"]["scale"] = jnp.ones(())
  with pytest.raises(ValueError, match=r"ssf/fc1/scale is \(\); this model and method need \(6,\)"):
    tuned.apply(variables, X)


# Keys.


def test_variables_do_not_touch_the_backbones_initial_values():
  start = jax.jit(lambda: vit().init(jax.random.key(5), IMAGES), compiler_options=QUICK)
  params = start()["params"]
  tuned = Tuned(vit(), (LoRA(rank=2), SSF()), sites(vit(), IMAGES))
  with_params = tuned.init(jax.random.key(5), params)
  again = start()["params"]
  jax.tree.map(np.testing.assert_array_equal, params, again)
  jax.tree.map(np.testing.assert_array_equal, with_params, tuned.init(jax.random.key(5)))
  a = flat(with_params["lora"])
  assert not np.array_equal(a["encoder/blocks_0/attn/q/a"], a["encoder/blocks_0/attn/k/a"])
  assert not np.array_equal(a["encoder/blocks_0/attn/q/a"], a["encoder/blocks_1/attn/q/a"])


def test_layers_of_a_scan_draw_different_values():
  tuned = Tuned(vit("scan"), (LoRA(rank=2),), sites(vit("scan"), IMAGES))
  a = tuned.init(jax.random.key(5))["lora"]["encoder"]["blocks"]["attn"]["q"]["a"]
  assert a.shape == (3, 12, 2)
  assert not np.array_equal(a[0], a[1]) and not np.array_equal(a[1], a[2])


@pytest.mark.parametrize("loop", ["python", "remat", "scan", "scan_remat"])
def test_dropout_has_a_stream_of_its_own(loop):
  tuned, variables = tune(vit(loop), IMAGES, LoRA(rank=2, dropout=0.5, sites=".*/(q|fc1)"))
  quiet, base, merged = three(tuned, variables, IMAGES)
  assert_moved(quiet, base)
  assert_close(merged, quiet)
  first = quick(tuned, variables, IMAGES, jax.random.key(0))
  assert_moved(first, quiet)
  np.testing.assert_array_equal(quick(tuned, variables, IMAGES, jax.random.key(0)), first)
  assert_moved(quick(tuned, variables, IMAGES, jax.random.key(1)), first)


def test_dropout_is_equal_under_jit_and_deterministic_without_its_stream():
  tuned, variables = tune(Two(), X, LoRA(rank=2, dropout=0.5))
  apply = lambda rngs: tuned.apply(variables, X, rngs=rngs)  # noqa: E731
  first, quiet = apply({"tuning": jax.random.key(0)}), apply(None)
  assert_moved(first, quiet)
  np.testing.assert_array_equal(apply({"dropout": jax.random.key(0)}), quiet)
  assert_close(jax.jit(apply)({"tuning": jax.random.key(0)}), first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listening(Method):
  """Keeps the keys it is given."""

  heard: ClassVar[list] = []

  def init(self, site, key, params):
    return {"a": jnp.zeros(())}

  def call(self, site, v, params, layer, x, rng):
    self.heard.append(tuple(np.asarray(jax.random.key_data(rng))))
    return layer(params, x)


def test_every_site_and_method_has_a_key_of_its_own():
  tuned, variables = tune(Two(), X, Listening(collection="a"), Listening(collection="b"))
  Listening.heard.clear()
  tuned.apply(variables, X, rngs={"tuning": jax.random.key(0)})
  assert len(Listening.heard) == len(set(Listening.heard)) == 4


# Types.


def test_integer_leaves_are_frozen_and_gradients_pass_them_by():
  tuned, variables = tune(Two(), X, Picked())
  labels = flat(tuned.labels(variables))
  assert labels["picked/fc1/row"] == "freeze" and labels["picked/fc1/value"] == "picked"
  train, frozen = tuned.split(variables)
  assert set(flat(train)) == {
    "picked/fc1/value", "picked/fc2/value", "params/head/kernel", "params/head/bias"
  }
  assert jax.tree.structure(join(train, frozen)) == jax.tree.structure(variables)
  gradients = jax.grad(lambda train: tuned.apply(join(train, frozen), X).sum())(train)
  assert all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
  "method", [LoRA(rank=2), SSF(), SAN(mode="nt", shift=True)], ids=["lora", "ssf", "san"]
)
def test_a_bfloat16_layer_stays_bfloat16(method):
  tuned, variables = tune(Two(dtype="bfloat16"), X, method, like=Two())
  y = tuned.apply(variables, X)
  assert y.dtype == jnp.bfloat16
  exact = Tuned(Two(), tuned.methods, tuned.table).apply(variables, X)
  assert_close(y.astype("float32"), exact, rtol=5e-2)
  half = {**variables, "params": jax.tree.map(lambda p: p.astype("bfloat16"), variables["params"])}
  merged = tuned.merge(half)
  assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_scales_are_vectors_and_factors_are_matrices_whatever_the_loop(loop):
  tuned, variables = tune(vit(loop), IMAGES, SSF(), LoRA(rank=2))
  vectors = flat(partition.vectors(tuned, variables))
  own = {path for path, vector in vectors.items() if not vector}
  assert own == {p for p in vectors if p.endswith("kernel") or p.startswith("lora/")}


def test_a_scale_over_heads_is_a_vector_too():
  model, images, head = third_party.dense_general()
  tuned = Tuned(model, (SSF(), LoRA(rank=1)), sites(model, images), head)
  vectors = flat(partition.vectors(tuned, jax.eval_shape(tuned.init, jax.random.key(0))))
  assert {path for path, vector in vectors.items() if not vector} == {
    path for path in vectors if path.startswith("lora/")
  }


# Printing.


def test_printing_shows_what_each_site_gains():
  tuned = Tuned(vit(), (LoRA(rank=2, sites=".*/q"), SSF()), sites(vit(), IMAGES))
  text = str(tuned)
  (q,) = [line for line in text.splitlines() if "encoder/blocks_1/attn/q " in line]
  assert "lora" in q and "ssf" in q and "72" in q  # 2 * (12 + 12) + 12 + 12


# Models of other people, unedited.


FOREIGN = {
  "lora": LoRA(rank=2),
  "ssf": SSF(),
  "nt": SAN(mode="nt"),
  "stack": (SSF(), LoRA(rank=2)),
}


@pytest.mark.parametrize("methods", FOREIGN.values(), ids=FOREIGN)
def test_a_model_in_setup_style(methods):
  model, images, head = third_party.setup_style()
  x = jax.random.normal(jax.random.key(1), images.shape)
  methods = methods if isinstance(methods, tuple) else (methods,)
  with third_party.relaxed():
    tuned, variables = tune(model, x, *methods, head=head)
    y, base, merged = three(tuned, variables, x)
  assert jax.tree.structure(y) == jax.tree.structure(base)
  assert_moved(y[0], base[0])
  jax.tree.map(functools.partial(assert_close, rtol=1e-4), merged, y)  # its logits are large
  labels = flat(tuned.labels(variables))
  assert {p for p, label in labels.items() if label == "head"} == {
    "params/output/kernel", "params/output/bias"
  }
  # Only the module "output" at the top is the head; each attention's own is tuned.
  assert all(f"encoder/layers_{i}/attention/output" in tuned.bound[0][1] for i in range(2))


def heads_wiring():
  """SAN through both attentions of a TNT block, whose kernels are [D, H, d] and [H, d, D]."""
  wires = []
  for block in (f"Encoder_0/TNTBlock_{i}" for i in range(2)):
    for n, stem in ((0, "TransformPatches_0/Dense_0"), (1, "Conv_0")):
      at, mlp = f"{block}/SelfAttention_{n}", f"{block}/MlpBlock_{n}"
      for name in ("query", "key", "value"):
        wires.append(Wire(f"{at}/{name}", (stem,), f"{at}/query"))
      wires.append(Wire(f"{at}/out", tuple(f"{at}/{n}" for n in ("query", "key", "value"))))
      wires.append(Wire(f"{mlp}/Dense_0", (f"{at}/out",)))
      wires.append(Wire(f"{mlp}/Dense_1", (f"{mlp}/Dense_0",)))
  return tuple(wires)


BIASED = r"Conv_0|.*/(Dense|LayerNorm)_\d"  # the attentions have no bias


@pytest.mark.parametrize(
  "methods",
  [
    (LoRA(rank=2),),
    (SSF(sites=BIASED),),
    (SAN(mode="nt"),),
    (SAN(wiring=heads_wiring()),),
    (SAN(wiring=heads_wiring(), recal="diag_bias"), LoRA(rank=1), SSF(sites=BIASED)),
  ],
  ids=["lora", "ssf", "nt", "san", "stack"],
)
def test_a_model_with_dense_general_attention(methods):
  model, images, head = third_party.dense_general()
  x = jax.random.normal(jax.random.key(1), images.shape)
  tuned, variables = tune(model, x, *methods, head=head)
  y, base, merged = three(tuned, variables, x)
  assert_moved(y, base)
  assert_close(merged, y, rtol=1e-4)  # its logits are large


def test_a_shift_on_bias_free_attention_applies_but_does_not_merge():
  model, images, head = third_party.dense_general()
  x = jax.random.normal(jax.random.key(1), images.shape)
  tuned, variables = tune(model, x, SSF(), head=head)
  assert variables["ssf"]["Encoder_0"]["TNTBlock_0"]["SelfAttention_1"]["query"][
    "shift"
  ].shape == (3, 8)
  plain = Tuned(model, (), tuned.table, head)
  assert_moved(quick(tuned, variables, x), quick(plain, variables, x))
  with pytest.raises(ValueError, match="would change 'bias' of .*SelfAttention_0/query"):
    tuned.merge(variables)


def test_a_model_of_unknown_names_needs_a_wiring():
  model, images, head = third_party.dense_general()
  with pytest.raises(ValueError, match="SAN: no wiring is known for this model"):
    Tuned(model, (SAN(),), sites(model, images), head)
