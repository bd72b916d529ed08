"""From a name or a file to the parameters of a model, and where they came from."""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from peft_jax import files
from peft_jax.models import shapes
from peft_jax.models.layers import HEAD_INITS, hidden_init, kernel_init
from peft_jax.models.stack import stack_blocks, unstack_blocks
from peft_jax.models.vit import ViT
from peft_jax.tree import flat, nest
from peft_jax.weights import hub, names, npz, package, reader, tiny
from peft_jax.weights import table as tables

# Leaves that may be missing from a file, and how they start. fc_norm: MAE and VPT's code start the
# norm after mean pooling afresh; the file's own `norm` is then not used.
FRESH = {
  r"head(_dist)?/(out/)?kernel": kernel_init,  # and more, see `started`
  r"head(_dist)?/hidden_\d+/kernel": hidden_init,
  r"head(_dist)?/(\w+/)?bias|fc_norm/bias": nn.initializers.zeros,
  r"head(_dist)?/norm_\d+/scale|fc_norm/scale": nn.initializers.ones,
}
LAST = r"head(_dist)?/(out/)?"  # layer of a head

# Attention heads of the weights that have a name of their own.
HEADS = {"dinov2_vits14": package.HEADS, **tiny.HEADS}


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


def load(spec, model, image_size=None, *, key, table=None, head="small"):
  """(params, Base): the full parameter tree of `model`, in its layout, with a fresh head.

  spec: "random", "dinov2_vits14", one of `tiny.FILES`, the path of a file that `reader` can read in
    a layout that `names` knows, or a name on the Hugging Face hub, see `hub`.
  image_size: pixels; must be the model's own, None takes it.
  key: for what is fresh: the head's kernel, see `head`; the hidden kernels of a head of several
    layers, normal of variance 2 / D.
  head: how the last layer of a fresh head starts. "small": truncated normal of standard deviation
    0.02, bias zero; "vpt": normal of variance 2 / num_classes, bias -log 99, as in VPT's code.
  table: how a position table of another size is resized, one of weights.table.HOW; None takes the
    source's own way: "bicubic_clamped" for dinov2_vits14 and for Swin's tables of relative
    positions, "bicubic_aa" for other files.
  Raises ValueError when a tensor of the file or of the model has no counterpart, naming both sides.
  """
  if image_size is not None and image_size != model.image_size:
    raise ValueError(f"image_size={image_size}, but the model was created for {model.image_size} "
                     "pixels: create it with the same image_size.")
  spec = str(spec)
  plain = model.clone(loop="python")
  if spec == "random":
    # In its scan form a ViT initialises alike for all loops and compiles one block.
    init = jax.jit((model.clone(loop="scan") if isinstance(model, ViT) else plain).init)
    images = jnp.zeros(shapes.images(model).shape, jnp.float32)
    params = unstack_blocks(init(key, images)["params"])
    if head != "small":
      there = {path: leaf.shape for path, leaf in flat(params).items()}
      last = {p: s for p, s in there.items() if re.fullmatch(f"{LAST}(kernel|bias)", p)}
      params = nest(flat(params) | started(last, key, head))
    base = Base("random", "random", "", fingerprint(params))
  else:
    want = {path: leaf.shape for path, leaf in flat(shapes.parameters(plain)).items()}
    got, file, sha, how, unused = source(spec, model)
    resized, skipped = fit(got, want, file, model, how, table)
    got |= started({path: want[path] for path in want.keys() - got.keys()}, key, head)
    base = Base(spec, str(file), sha, fingerprint(nest(got)), resized, (*unused, *skipped))
    for path in sorted(got):  # one at a time: the new array takes the place of the file's
      got[path] = jax.block_until_ready(jax.device_put(got.pop(path), may_alias=False))
    params = nest(got)
  if "scan" in model.loop:
    params = stack_blocks(params)
  return jax.tree.map(jnp.asarray, params), base


def started(shapes, key, head):
  """{path: array} of fresh leaves, {path: shape}."""
  kernel, bias = HEAD_INITS[head]
  starts = [(f"{LAST}kernel", kernel), (f"{LAST}bias", bias), *FRESH.items()]
  made = {}
  for i, path in enumerate(sorted(shapes)):
    start = next(v for k, v in starts if re.fullmatch(k, path))
    made[path] = np.asarray(start(jax.random.fold_in(key, i), shapes[path], jnp.float32))
  return made


def source(spec, model):
  """(arrays in our names, file, its SHA-256, way of resizing its position table, skipped)."""
  heads = getattr(model, "heads", None)
  if HEADS.get(spec):
    try:
      names.same_heads(HEADS[spec], heads)
    except ValueError as error:
      raise ValueError(f"{spec}: {error}") from None
  if spec == "dinov2_vits14":
    file = f"{package.PACKAGE}/{package.FILE}"
    return package.dinov2_vits14(), file, package.SHA256, "bicubic_clamped", ()
  if spec in tiny.FILES:
    file = tiny.FILES[spec]
    return npz.read(file), file, npz.sha256(file), "bicubic_aa", ()
  file = find(spec)
  arrays = reader.read(file)
  arrays, skipped = translated(spec, arrays, heads)
  sha = npz.sha256(file)
  hub.check(file, sha)
  return arrays, file, sha, "bicubic_aa", skipped


def translated(file, arrays, heads=None):
  """names.translate(arrays, heads), whose errors name the file."""
  try:
    return names.translate(arrays, heads)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None


def find(spec):
  """The file a spec means: itself, or one of the hub's."""
  if not epath.Path(spec).exists():
    if hub.parse(spec):
      return hub.fetch(spec)
    if not spec.endswith(hub.SUFFIXES):
      own = ", ".join(map(repr, ("random", *HEADS)))
      raise ValueError(f"weights {spec!r} are neither one of {own} nor a file nor "
                       "a name on the Hugging Face hub (hf-hub:owner/name, or timm's with its tag: "
                       f"vit_base_patch16_224.augreg_in21k); files may be {reader.SUPPORTED}.")
  return spec


def fit(got, want, file, model, how, table=None):
  """(resized, skipped), or a ValueError that lists both sides; `got` becomes what `want` says.

  Leaves of FRESH may stay absent from `got`.
  """
  resized, skipped = [], []
  for path in sorted(got):
    # A head is always a fresh one; what else is skipped may be a part of this very model.
    if path in want and not path.startswith("head"):
      continue
    for rule, why in names.SKIPPED.items():
      if re.fullmatch(rule, path):
        skipped.append(f"{path}: {why}")
        del got[path]
        break
  if "fc_norm/scale" in want:
    for path in ("norm/scale", "norm/bias"):
      if path in got:
        skipped.append(f"{path}: the model pools first and norms after (fc_norm)")
        del got[path]
  if "norm_pre/scale" in got and "patch_embed/bias" in want.keys() - got.keys():
    got["patch_embed/bias"] = np.zeros(want["patch_embed/bias"], np.float32)
    resized.append("patch_embed/bias: zeros, as CLIP's patches have none")
  try:
    if "pos_embed" in got and "pos_embed" in want:
      resized += position(got, want, model, table or how)
    resized += relative(got, want, table or "bicubic_clamped")
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
  return tuple(resized), tuple(skipped)


def position(got, want, model, how):
  """Gives `got` a position table of the model's form and size; returns what was done.

  The rows of a table for the class token (and for DeiT's distillation token) are constants added
  to these tokens, so a table with them and one without turn into each other exactly.
  """
  done, old = [], got["pos_embed"]
  prefix, side = tables.split(old)
  tokens = [name for name in ("cls_token", "dist_token") if name in want]
  wanted = 0 if model.no_embed_class else len(tokens)
  if wanted == 0 and prefix == len(tokens) and all(name in got for name in tokens):
    for i, name in enumerate(tokens):
      got[name] = got[name] + old[:, i : i + 1]
    got["pos_embed"] = old[:, prefix:]
    done.append("pos_embed: its class row was added to cls_token" if prefix == 1 else
                "pos_embed: its first rows were added to cls_token and dist_token")
  elif prefix == 0 and wanted:
    got["pos_embed"] = np.concatenate([np.zeros_like(old[:, :1])] * wanted + [old], axis=1)
    done.append("pos_embed: a class row of zeros was put before it" if wanted == 1 else
                "pos_embed: two rows of zeros were put before it")
  new = model.image_size // model.patch
  if side != new:
    got["pos_embed"] = tables.resize(got["pos_embed"], new, how)
    done.append(f"pos_embed: {side} x {side} to {new} x {new}, {how}")
  return done


def relative(got, want, how):
  """Gives Swin's tables of relative positions [(2w - 1)^2, heads] the model's window w."""
  done = []
  for path in sorted(got):
    if path.endswith("/rel_pos") and path in want and got[path].shape[1:] == want[path][1:]:
      old, new = (math.isqrt(shape[0]) for shape in (got[path].shape, want[path]))
      if old != new:
        got[path] = tables.resize(got[path][None], new, how)[0]
        done.append(f"{path}: {old} x {old} to {new} x {new}, {how}")
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
