"""From a name or a file to the parameters of a model, and where they came from."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from peft_jax import files
from peft_jax.models.layers import kernel_init
from peft_jax.models.stack import stack_blocks, unstack_blocks
from peft_jax.models.vit import ViT
from peft_jax.tree import flat, nest
from peft_jax.weights import names, npz, package
from peft_jax.weights import table as tables

# Leaves that may be missing from a file, and how they start. fc_norm: MAE and VPT's code start the
# norm after mean pooling afresh; the file's own `norm` is then not used.
FRESH = {
  r"head/kernel": kernel_init,
  r"head/bias|fc_norm/bias": nn.initializers.zeros,
  r"fc_norm/scale": nn.initializers.ones,
}


@dataclasses.dataclass(frozen=True)
class Base:
  """Where a backbone's parameters came from.

  name: the spec it was loaded by.  source: the file, or "random".
  sha256: of that file; "" for random.  fingerprint: of the loaded backbone, see `fingerprint`.
  resized, skipped: what was done to the file's tensors, as sentences; all others were loaded.
  """

  name: str
  source: str
  sha256: str
  fingerprint: str
  resized: tuple = ()
  skipped: tuple = ()


def load(spec, model, image_size=None, *, key, table=None):
  """(params, Base): the full parameter tree of `model`, in its layout, with a fresh head.

  spec: "random", "dinov2_vits14", or the path of an .npz file in Google's, timm's or our names.
  image_size: pixels; must be the model's own, None takes it.
  key: for what is fresh: the head's kernel, truncated normal of standard deviation 0.02 (its bias
    is zero).
  table: how a position table of another size is resized, one of weights.table.HOW; None takes the
    source's own way: "bicubic_clamped" for dinov2_vits14, "bicubic_aa" for files.
  Raises ValueError when a tensor of the file or of the model has no counterpart, naming both sides.
  """
  if image_size is not None and image_size != model.image_size:
    raise ValueError(f"image_size={image_size}, but the model was created for {model.image_size} "
                     "pixels: create it with the same image_size.")
  spec = str(spec)
  plain = model.clone(loop="python")
  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  if spec == "random":
    # In its scan form a ViT initialises alike for all loops and compiles one block.
    init = jax.jit((model.clone(loop="scan") if isinstance(model, ViT) else plain).init)
    params = unstack_blocks(init(key, jnp.zeros(images.shape, images.dtype))["params"])
    base = Base("random", "random", "", fingerprint(params))
  else:
    arrays, file, sha, how = source(spec, model)
    shapes = jax.eval_shape(plain.init, key, images)["params"]
    want = {path: leaf.shape for path, leaf in flat(shapes).items()}
    got, resized, skipped = fit(arrays, want, file, model, table or how)
    for i, path in enumerate(sorted(want.keys() - got.keys())):
      start = next(v for k, v in FRESH.items() if re.fullmatch(k, path))
      got[path] = np.asarray(start(jax.random.fold_in(key, i), want[path], jnp.float32))
    params = nest(got)
    base = Base(spec, str(file), sha, fingerprint(params), resized, skipped)
  if "scan" in model.loop:
    params = stack_blocks(params)
  return jax.tree.map(jnp.asarray, params), base


def source(spec, model):
  """(arrays in our names, file, its SHA-256, way of resizing its position table) of a spec."""
  if spec == "dinov2_vits14":
    arrays = package.dinov2_vits14()
    try:
      names.same_heads(package.HEADS, model.heads)
    except ValueError as error:
      raise ValueError(f"{spec}: {error}") from None
    return arrays, f"{package.PACKAGE}/{package.FILE}", package.SHA256, "bicubic_clamped"
  if not spec.endswith(".npz"):
    raise ValueError(f"weights {spec!r} are neither 'random' nor 'dinov2_vits14' nor the path of "
                     "an .npz file.")
  arrays = npz.read(spec)
  layout = names.layout(arrays)
  if layout is None:
    raise ValueError(f"{spec} holds no patch embedding under a name known here (embedding/kernel, "
                     "patch_embed.proj.weight, patch_embed/kernel); its first names are "
                     f"{', '.join(sorted(arrays)[:4])}.")
  try:
    if layout == "google":
      arrays = names.google(arrays, model.heads)
    elif layout == "timm":
      arrays = names.timm(arrays)
    else:
      arrays = {k: np.asarray(v) for k, v in flat(unstack_blocks(nest(arrays))).items()}
  except ValueError as error:
    raise ValueError(f"{spec}: {error}") from None
  return arrays, spec, npz.sha256(spec), "bicubic_aa"


def fit(arrays, want, file, model, how):
  """(arrays of the shapes `want`, resized, skipped), or a ValueError that lists both sides.

  Leaves of FRESH may be absent from the result.
  """
  got, resized, skipped = dict(arrays), [], []
  for path in sorted(arrays):
    for rule, why in names.SKIPPED.items():
      if re.fullmatch(rule, path):
        skipped.append(f"{path}: {why}")
        del got[path]
  if "fc_norm/scale" in want:
    for path in ("norm/scale", "norm/bias"):
      if path in got:
        skipped.append(f"{path}: the model pools first and norms after (fc_norm)")
        del got[path]
  if "pos_embed" in got and "pos_embed" in want:
    try:
      resized += position(got, want, model, how)
    except ValueError as error:
      raise ValueError(f"{file}: {error}") from None

  missing = [f"{p} {list(want[p])}" for p in sorted(want.keys() - got.keys())
             if not any(re.fullmatch(k, p) for k in FRESH)]
  unknown = [f"{p} {list(got[p].shape)}" for p in sorted(got.keys() - want.keys())]
  other = [f"{p} {list(got[p].shape)} instead of {list(want[p])}" for p in sorted(got)
           if p in want and got[p].shape != want[p]]
  other += [f"{p} {got[p].dtype} instead of float32" for p in sorted(got)
            if got[p].dtype != np.float32]
  if missing or unknown or other:
    parts = (("missing from the file: ", missing), ("unknown to the model: ", unknown),
             ("of another shape or type in the file: ", other))
    raise ValueError(f"{file} does not fit the model; " + "; ".join(
      start + brief(lines) for start, lines in parts if lines) + ".")
  return got, tuple(resized), tuple(skipped)


def position(got, want, model, how):
  """Gives `got` a position table of the model's form and size; returns what was done.

  The class token's row of a table is a constant added to the class token, so a table with it and
  one without it turn into each other exactly.
  """
  done, old = [], got["pos_embed"]
  prefix, side = tables.split(old)
  wanted = 0 if model.no_embed_class else 1
  if prefix > wanted and "cls_token" in got:
    got["cls_token"] = got["cls_token"] + old[:, :1]
    got["pos_embed"] = old[:, 1:]
    done.append("pos_embed: its class row was added to cls_token")
  elif prefix < wanted:
    got["pos_embed"] = np.concatenate([np.zeros_like(old[:, :1]), old], axis=1)
    done.append("pos_embed: a class row of zeros was put before it")
  new = model.image_size // model.patch
  if side != new:
    got["pos_embed"] = tables.resize(got["pos_embed"], new, how)
    done.append(f"pos_embed: {side} x {side} to {new} x {new}, {how}")
  return done


def brief(lines):
  return ", ".join(lines[:6]) + (f" and {len(lines) - 6} more" if len(lines) > 6 else "")


def fingerprint(params):
  """SHA-256 of a backbone's parameters: path, type, shape and bytes of every leaf.

  Independent of the loop's layout, of the head and, as `pos_embed` is left out, of the image size.
  """
  params = flat(unstack_blocks(jax.tree.map(np.asarray, params)))
  return files.digest({path: leaf for path, leaf in params.items()
                       if not path.startswith("head") and path != "pos_embed"})


def save(path, params):
  """Writes a parameter tree to `path` (.npz) in our names, one subtree per block."""
  if epath.Path(path).suffix != ".npz":
    raise ValueError(f"weights are saved as .npz, not as {path}.")
  npz.write(path, flat(unstack_blocks(jax.tree.map(np.asarray, params))))
