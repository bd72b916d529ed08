"""An adapter file gives back the model that was trained, or says in one sentence why not."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import peft_jax
from peft_jax import adapter_file, models, safetensors, weights
from peft_jax.methods import SAN, SSF, Adapter, AdaptFormer, Bias, Full, Linear, LoRA, Norm, Wire
from peft_jax.sites import sites
from peft_jax.tree import flat, nest
from peft_jax.tuned import Tuned

METHODS = {
  "lora": (LoRA(rank=2, sites=".*/(q|k|v)", share=("q", "k", "v")),),
  "san_ssf": (SAN(variant="paper"), SSF(sites="norm")),
  "san_wired": (SAN(wiring=(Wire("encoder/blocks_0/mlp/fc2", ("encoder/blocks_0/mlp/fc1",)),)),),
  "exact": (LoRA(rank=1, sites=("encoder/blocks_0/attn/q", "head")),),
  "bias_norm": (Bias(), Norm()),
  "full": (Full(),),
  "linear": (Linear(),),
}
CLASSES = ("a cat", "ein Hund", "ένα")


KEY = jax.random.key(5)


@functools.cache
def drawn(model, seed=5):
  """(params, Base) without compiling the model's own initialisation."""
  size, random = model.image_size, np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, size, size, 3)))["params"]
  params = jax.tree.map(lambda s: random.normal(0, 0.2, s.shape).astype(np.float32), shapes)
  return params, weights.Base("random", "random", "", weights.fingerprint(params))


def perturbed(tree):
  """`tree` with noise on every leaf, so that no equality holds by an initial value."""
  random = np.random.default_rng(2)
  return jax.tree.map(lambda x: x + random.normal(0, 0.1, x.shape).astype(np.float32), tree)


class Made:
  """A tuned vit_test, trained by adding noise, and its file."""

  def __init__(self, folder, methods=METHODS["lora"], spec=None, name="vit_test", **options):
    self.path = folder / "adapter.safetensors"
    self.model = models.create(name, num_classes=3, **options)
    if spec:
      self.params, base = weights.load(spec, self.model, key=KEY)
    else:
      self.params, base = drawn(self.model)
    size = self.model.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    self.tuned = Tuned(self.model, methods, sites(self.model, images))
    variables = {"params": self.params, **self.tuned.init(jax.random.key(1), self.params)}
    train, frozen = self.tuned.split(variables)
    self.train = perturbed(train)
    self.variables = peft_jax.join(self.train, frozen)
    self.about = {
      "tuned": self.tuned,
      "base": base,
      "model": name,
      "resize": "bilinear_pil",
      "normalize": "imagenet",
      "task": "folder",
      "class_names": CLASSES,
      "seed": 3,
      "key": KEY,
    }
    adapter_file.save(self.path, self.train, **self.about)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """One Made for the tests that do not change its file."""
  return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def loaded(made):
  return peft_jax.load(made.path, made.params)


def images(size=32):
  return np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("name", METHODS)
def test_loaded_logits_are_those_that_were_trained(tmp_path, name):
  made = Made(tmp_path, METHODS[name])
  loaded = peft_jax.load(made.path, made.params)
  assert loaded.tuned == made.tuned
  expected = jax.jit(made.tuned.apply)(made.variables, images())
  plain = jax.jit(made.model.apply)({"params": made.params}, images())
  assert abs(expected - plain).max() > 1e-2
  np.testing.assert_allclose(loaded.logits(images()), expected, rtol=1e-5, atol=1e-6)
  merged = jax.jit(made.model.apply)({"params": loaded.merged()}, images())
  np.testing.assert_allclose(merged, expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_methods_that_do_not_merge(tmp_path):
  made = Made(tmp_path, (Adapter(width=3, parallel=("mlp",)), AdaptFormer(width=4)))
  loaded = peft_jax.load(made.path, made.params)
  assert loaded.tuned == made.tuned
  expected = jax.jit(made.tuned.apply)(made.variables, images())
  plain = jax.jit(made.model.apply)({"params": made.params}, images())
  assert abs(expected - plain).max() > 1e-2
  np.testing.assert_allclose(loaded.logits(images()), expected, rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match="Adapter at encoder/blocks_0/mlp is no change of weights"):
    loaded.merged()


@pytest.mark.parametrize("name, options", [
  ("swin_test", {"depths": (1, 2), "image_size": 28}),
  ("convnext_test", {"widths": (4, 6), "depths": (1, 1), "image_size": 32}),
])
def test_a_file_remembers_a_backbone_with_stages(tmp_path, name, options):
  made = Made(tmp_path, (SSF(downsample_pairs=True),), name=name, **options)
  loaded = peft_jax.load(made.path, made.params)
  assert loaded.tuned == made.tuned and loaded.tuned.model == made.model
  x = images(options["image_size"])
  expected = jax.jit(made.tuned.apply)(made.variables, x)
  np.testing.assert_allclose(loaded.logits(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "options",
  [
    {"loop": "scan", "drop_path": 0.3},
    {"loop": "remat", "dtype": "bfloat16"},
    {"image_size": 48, "pool": "avg", "gelu": "tanh", "layer_scale": 0.5},
  ],
  ids=str,
)
def test_options_of_the_model_come_back(tmp_path, options):
  made = Made(tmp_path, **options)
  loaded = peft_jax.load(made.path, made.params)
  assert loaded.tuned.model == made.model.clone(drop_path=0.0)
  x = images(made.model.image_size)
  expected = jax.jit(made.tuned.apply)(made.variables, x)
  np.testing.assert_allclose(loaded.logits(x), expected, rtol=1e-5, atol=1e-6)


def test_seeded_weights_are_made_again(tmp_path):
  made = Made(tmp_path, spec="random")
  loaded = peft_jax.load(made.path)
  expected = jax.jit(made.tuned.apply)(made.variables, images())
  np.testing.assert_allclose(loaded.logits(images()), expected, rtol=1e-5, atol=1e-6)
  for path, leaf in flat(made.params).items():
    if not path.startswith("head"):
      np.testing.assert_array_equal(flat(loaded.variables["params"])[path], leaf)


def test_the_tree_and_the_header_come_back_without_any_model(made):
  train, header = adapter_file.read(made.path)
  found, expected = flat(train), flat(made.train)
  assert found.keys() == expected.keys() >= {"params/head/kernel", "lora/encoder/blocks_0/attn/q/a"}
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)
  assert header["methods"][0] == {
    "method": "lora",
    "sites": ".*/(q|k|v)",
    "collection": "lora",
    "rank": 2,
    "alpha": 8.0,
    "rslora": False,
    "rank_pattern": [],
    "alpha_pattern": [],
    "initial": "default",
    "dropout": 0.0,
    "share": ["q", "k", "v"],
  }
  assert header["model"] == {"name": "vit_test", "num_classes": 3, "image_size": 32}
  assert header["preprocessing"] == {
    "image_size": 32,
    "resize": "bilinear_pil",
    "normalize": "imagenet",
  }
  assert header["base"]["fingerprint"] == weights.fingerprint(made.params)
  assert header["class_names"] == list(CLASSES) and header["head"] == "head(_dist)?"
  assert (header["task"], header["seed"], header["format"]) == ("folder", 3, 1)
  assert set(header["versions"]) == {"peft_jax", "jax", "flax"}


def test_the_same_training_gives_the_same_bytes_and_the_size_is_known_before(tmp_path):
  one = Made(tmp_path)
  content = one.path.read_bytes()
  shapes = jax.eval_shape(lambda: one.train)
  assert adapter_file.size(shapes, **one.about) == len(content)
  adapter_file.save(one.path, one.train, **one.about)
  assert one.path.read_bytes() == content
  assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_weights_may_be_given_as_a_tree_or_a_file_in_either_layout(tmp_path):
  made = Made(tmp_path, loop="scan")
  weights.save(tmp_path / "base.npz", made.params)
  expected = peft_jax.load(made.path, made.params).logits(images())
  for base in (models.unstack_blocks(made.params), str(tmp_path / "base.npz")):
    np.testing.assert_array_equal(peft_jax.load(made.path, base).logits(images()), expected)


def test_other_weights_are_refused_naming_both(made, tmp_path):
  other, base = drawn(made.model, 6)
  weights.save(tmp_path / "other.npz", other)
  mine, theirs = made.about["base"].fingerprint[:16], base.fingerprint[:16]
  with pytest.raises(ValueError) as caught:
    peft_jax.load(made.path, tmp_path / "other.npz")
  assert str(caught.value) == (
    f"The adapter {made.path} was trained on the weights 'random' (fingerprint {mine}), but "
    f"'{tmp_path / 'other.npz'}' has fingerprint {theirs}; give the weights it was trained on."
  )
  with pytest.raises(ValueError, match="but 'the given parameters' has fingerprint"):
    peft_jax.load(made.path, other)


def test_weights_that_are_gone_are_named_with_what_to_do(tmp_path):
  params, _ = drawn(models.create("vit_test", num_classes=3))
  weights.save(tmp_path / "base.npz", params)
  made = Made(tmp_path, spec=str(tmp_path / "base.npz"))
  (tmp_path / "base.npz").unlink()
  with pytest.raises(OSError, match="trained on the weights .*base.npz.* Give them as base="):
    peft_jax.load(made.path)
  assert peft_jax.load(made.path, params).tuned == made.tuned


def test_given_parameters_must_fit_the_model(made):
  odd = flat(made.params)
  odd["pos_embed"] = odd["pos_embed"][:, :5]  # not in the fingerprint
  with pytest.raises(ValueError, match=r"The base holds float32\[1, 5, 24\] at params/pos_embed"):
    peft_jax.load(made.path, nest(odd))


def test_random_weights_need_their_key(made):
  with pytest.raises(ValueError, match="needs the key they were made from: pass key="):
    adapter_file.save(made.path, made.train, **made.about | {"key": None})


def test_a_model_that_is_no_preset_is_saved_but_not_built(made, tmp_path):
  path = tmp_path / "a"
  adapter_file.save(path, made.train, **made.about | {"model": None})
  assert adapter_file.read(path)[1]["model"] is None
  with pytest.raises(ValueError, match="trained on a model that is no preset; build that model"):
    peft_jax.load(path)


def test_a_method_of_the_users_own_is_saved_but_not_built(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Mine(Linear):
    pass

  made = Made(tmp_path, (Mine(),))
  assert "params/head/bias" in flat(adapter_file.read(made.path)[0])
  with pytest.raises(ValueError, match="its method '.*Mine' is not known here, only lora"):
    peft_jax.load(made.path)


def test_images_of_every_kind_are_prepared_as_in_training(loaded):
  pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  normalised = ((pixels / 255 - mean) / std).astype(np.float32)
  expected = loaded.logits(normalised)
  assert expected.shape == (3, 3) and expected.dtype == np.float32
  assert abs(expected[0] - expected[1]).max() > 1e-3
  pictures = [Image.fromarray(p) for p in pixels]
  for same in (pixels, list(pixels), pictures, jnp.asarray(normalised)):
    np.testing.assert_allclose(loaded.logits(same), expected, rtol=1e-4, atol=1e-5)
  for one in (pixels[0], pictures[0], normalised[0]):
    np.testing.assert_allclose(loaded.logits(one), expected[:1], rtol=1e-4, atol=1e-5)
  big = pictures[0].resize((80, 50))
  resized = np.asarray(big.resize((32, 32), Image.Resampling.BILINEAR))
  np.testing.assert_allclose(loaded.logits([big]), loaded.logits(resized), rtol=1e-5)
  grey = pictures[0].convert("L")
  np.testing.assert_allclose(loaded.logits(grey), loaded.logits(grey.convert("RGB")), rtol=1e-5)
  many = loaded.logits(np.concatenate([pixels] * 12))
  np.testing.assert_allclose(many, np.concatenate([expected] * 12), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [np.zeros((2, 32, 32, 3), np.int32), np.zeros((2, 2), np.uint8)])
def test_what_is_no_image_is_refused(loaded, wrong):
  with pytest.raises(ValueError, match="An image is a Pillow image, uint8"):
    loaded.logits(wrong)
  with pytest.raises(ValueError, match="images of 16 x 16 pixels do not fit"):
    loaded.logits(images(16))
  with pytest.raises(ValueError, match="no image to predict"):
    loaded.logits([])


def test_predict_names_class_and_probability_of_each_file(loaded, tmp_path):
  pictures = np.random.default_rng(1).integers(0, 256, (2, 40, 30, 3), np.uint8)
  paths = [tmp_path / f"{i}.png" for i in range(2)]
  for path, picture in zip(paths, pictures, strict=True):
    Image.fromarray(picture).save(path)
  probabilities = np.asarray(jax.nn.softmax(loaded.logits(list(pictures))))
  for (label, p), row in zip(loaded.predict(paths), probabilities, strict=True):
    assert label == CLASSES[row.argmax()] and abs(p - row.max()) < 1e-5
  (alone,), both = loaded.predict(str(paths[1])), loaded.predict(paths)
  assert alone[0] == both[1][0] and abs(alone[1] - both[1][1]) < 1e-5
  ranked = loaded.rank(paths, top=2)
  assert [len(r) for r in ranked] == [2, 2] and ranked[0][0][1] >= ranked[0][1][1]
  (tmp_path / "bad.png").write_text("no image")
  with pytest.raises(ValueError, match="Cannot read the image .*bad.png"):
    loaded.predict([paths[0], tmp_path / "bad.png"])
  with pytest.raises(FileNotFoundError, match="There is no image .*none.png"):
    loaded.predict(tmp_path / "none.png")


def rewritten(made, change, path):
  """Writes the file to `path` with `change(arrays, header)` applied."""
  arrays, metadata = safetensors.read(made.path)
  header = json.loads(metadata[adapter_file.NAME])
  change(arrays, header)
  safetensors.write(path, arrays, {adapter_file.NAME: json.dumps(header)})


CHANGES = {
  "format": (lambda a, h: h.update(format=2), "has format 2, this peft_jax reads 1; install"),
  "no_base": (lambda a, h: h.pop("base"), "damaged header: base is missing or of the wrong type"),
  "base": (lambda a, h: h["base"].update(name=3), "base.name is missing or of the wrong type"),
  "seed": (lambda a, h: h.update(seed=True), "seed is missing or of the wrong type"),
  "methods": (lambda a, h: h.update(methods=[1]), "methods is no list of named methods"),
  "names": (lambda a, h: h.update(class_names=[1, 2, 3]), "class_names is no list of strings"),
  "classes": (lambda a, h: h.update(class_names=["a"]), "names 1 classes, but its model has 3"),
  "option": (lambda a, h: h["methods"][0].update(rnk=1), "option 'rnk' that is not known here"),
  "type": (lambda a, h: h["methods"][0].update(rank="a"), "has rank='a', which is of the wrong"),
  "model": (lambda a, h: h["model"].update(name="vit"), "cannot be used: there is no model 'vit'"),
  "wide": (lambda a, h: h["model"].update(wid=1), "cannot be used: vit_test has no option wid"),
  "sites": (lambda a, h: h["methods"][0].update(sites="x"), "'x' selects none of the"),
  "rank": (
    lambda a, h: h["methods"][0].update(rank=1),
    r"holds float32\[2, 24\] at lora/encoder/blocks_0/attn/./b, .* need float32\[1, 24\]",
  ),
  "missing": (
    lambda a, h: a.pop("params/head/bias"),
    r"adapter.safetensors holds nothing at params/head/bias, .* need float32\[3\]",
  ),
  "extra": (
    lambda a, h: a.update({"san/x": np.ones(1, np.float32)}),
    r"holds float32\[1\] at san/x, but its model and methods need nothing",
  ),
  "frozen": (
    lambda a, h: a.update({"params/norm/scale": np.ones(24, np.float32)}),
    r"holds float32\[24\] at params/norm/scale, but its methods do not train it",
  ),
  "dtype": (
    lambda a, h: a.update({"params/head/bias": np.ones(3, np.int32)}),
    r"holds int32\[3\] at params/head/bias",
  ),
  "path": (
    lambda a, h: a.update({"params/head/bias/x": np.ones(3, np.int32)}),
    "'params/head/bias/x' is no path of a tree",
  ),
  "key": (lambda a, h: h["base"].update(key="xyz"), "base.key is no key"),
  "random": (
    lambda a, h: h["base"].update(key="00000000000000ff"),
    "seeded weights may differ between kinds of device and versions of jax",
  ),
  "size": (lambda a, h: h["preprocessing"].update(image_size=64), "images have 64 pixels, its mod"),
  "normalize": (
    lambda a, h: h["preprocessing"].update(normalize="mean"),
    "cannot be used: There is no normalize 'mean'",
  ),
  "resize": (
    lambda a, h: h["preprocessing"].update(resize="up"),
    "cannot be used: There is no resize 'up'",
  ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_headers_and_trees_are_refused(made, tmp_path, name):
  change, sentence = CHANGES[name]
  path = tmp_path / "adapter.safetensors"
  rewritten(made, change, path)
  with pytest.raises(ValueError, match=sentence):
    peft_jax.load(path, None if name == "random" else made.params)


def test_truncated_foreign_and_missing_files_are_refused(made, tmp_path):
  path, content = tmp_path / "a", made.path.read_bytes()
  for length in (0, 5, 100, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match="is no complete safetensors file"):
      peft_jax.load(path)
  safetensors.write(path, {"weight": np.ones(1, np.float32)}, {"format": "pt"})
  with pytest.raises(ValueError, match="is a safetensors file but no peft_jax adapter"):
    peft_jax.load(path)
  for text in ("[1]", "{", "[" * 100_000, "null"):
    safetensors.write(path, {}, {adapter_file.NAME: text})
    with pytest.raises(ValueError, match="has a damaged header"):
      peft_jax.load(path)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    peft_jax.load(tmp_path / "nothing")
