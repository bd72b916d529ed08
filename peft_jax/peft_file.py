"""LoRA and DoRA adapters as HF PEFT keeps them: a folder of adapter_config.json and
adapter_model.safetensors, for timm's model of the same name.

    base_model.model.blocks.0.attn.qkv.lora_A.weight           [r, in]     our a, transposed
    base_model.model.blocks.0.attn.qkv.lora_B.weight           [out, r]    our b, transposed
    base_model.model.blocks.0.attn.qkv.lora_magnitude_vector   [out]       of DoRA
    base_model.model.head.weight                               [K, D]      the head

(a convolution's are [r, in, h, w], [out, r, 1, 1] and [1, out, 1, 1]). q, k and v are one layer in
timm. With one A (`share`) they are one LoRA on it, B stacked; with an A each they are one of the
sum of their ranks, B block-diagonal; where only some of them are tuned, B is zero at the others. s
stays. The head goes into modules_to_save.

Format of PEFT 0.21 (peft: utils/save_and_load.py, tuners/lora/config.py). The base weights, the
class names and how images are prepared are in neither file.
"""

from __future__ import annotations

import collections
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from peft_jax import files, models, safetensors
from peft_jax.methods import DoRA, LoRA
from peft_jax.models import unstack_blocks
from peft_jax.sites import is_head, select, sites
from peft_jax.tree import flat, nest, under
from peft_jax.tuned import Tuned
from peft_jax.weights import names

CONFIG, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
QKV = ("q", "k", "v")

# What the config may say without changing what an adapter computes from its arrays. Of all other
# fields, which later versions of PEFT may add, only an empty value is understood.
NEEDED = {"r": (int,), "lora_alpha": (int, float), "lora_dropout": (int, float),
          "rank_pattern": (dict,), "alpha_pattern": (dict,)}
READ = {"peft_type", "use_rslora", "use_dora", "bias", "init_lora_weights", *NEEDED}
FREE = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
        "peft_version", "target_modules", "exclude_modules", "layers_to_transform",
        "layers_pattern", "modules_to_save", "megatron_core", "qalora_group_size", "eva_config",
        "runtime_config"}
# Values of init_lora_weights that leave the base weights as they are; PiSSA and others do not.
INITIAL = (True, False, "gaussian", "eva", "orthogonal")


def write(folder, tuned, train, conv_mlp=False):
  """Writes a trained tree as the two files of HF PEFT into `folder`, see `to_peft`."""
  arrays, config = to_peft(tuned, train, conv_mlp)
  folder = epath.Path(folder)
  safetensors.write(folder / ARRAYS, arrays, {"format": "pt"})
  with files.replacing(folder / CONFIG) as file:
    file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def read(folder, model):
  """(Tuned, trained tree) of a folder that HF PEFT wrote, on `model`; see `from_peft`.

  Raises FileNotFoundError, or ValueError naming the folder, in one sentence.
  """
  path = epath.Path(folder) / CONFIG
  if not path.exists():
    raise FileNotFoundError(f"{folder} holds no {CONFIG}: it is no adapter of HF PEFT.")
  arrays, _ = safetensors.read(epath.Path(folder) / ARRAYS)
  with files.refusing(path, "no config of HF PEFT"):
    config = json.loads(path.read_text())
    if not isinstance(config, dict):
      raise ValueError("it is no table")
  try:
    return from_peft(arrays, config, model)
  except ValueError as error:
    raise ValueError(f"The HF PEFT adapter {folder} cannot be used: {error}") from None


def to_peft(tuned, train, conv_mlp=False):
  """({name: array}, config) as HF PEFT stores them, of `tuned.split(variables)[0]`.

  conv_mlp: timm's form of ConvNeXt's smallest, see `names.has_conv_mlp`.
  Raises ValueError for what PEFT's LoRA cannot hold: other methods, DoRA on a part of q, k and v,
  a model that timm does not have.
  """
  family = _family(tuned.table)
  methods = [method for method, _ in tuned.bound]
  if len(methods) != 1 or type(methods[0]) not in (LoRA, DoRA):
    found = ", ".join(type(m).__name__ for m in tuned.methods) or "no method"
    raise ValueError(f"HF PEFT's file holds one LoRA or one DoRA and the head, not {found}.")
  method, places = tuned.bound[0]
  own = [p for p in flat(train.get("params", {})) if not is_head(p.rpartition("/")[0], tuned.head)]
  if own:
    raise ValueError(f"HF PEFT's file holds LoRA and the head; {own[0]} is trained here, too.")
  arrays, ranks, alphas = {}, {}, {}
  for module, (a, b, scale, magnitude) in _fused(tuned, train, method, places, family).items():
    if a.ndim == 4 or (conv_mlp and re.search(r"mlp\.fc[12]$", module)):
      a, b = (x if x.ndim == 4 else x[None, None] for x in (a, b))
      magnitude = None if magnitude is None else magnitude.reshape(1, -1, 1, 1)
    axes = (3, 2, 0, 1) if a.ndim == 4 else (1, 0)
    arrays[f"{PREFIX}{module}.lora_A.weight"] = a.transpose(axes)
    arrays[f"{PREFIX}{module}.lora_B.weight"] = b.transpose(axes)
    if magnitude is not None:
      arrays[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitude
    ranks[module], alphas[module] = a.shape[-1], _number(scale * a.shape[-1])
  heads = set()
  for path, leaf in flat(jax.tree.map(np.asarray, train.get("params", {}))).items():
    head, _, name = path.rpartition("/")
    head = _theirs(head, family)
    heads.add(head)
    arrays[f"{PREFIX}{head}.{'bias' if name == 'bias' else 'weight'}"] = leaf.T
  rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
  config = {
    "peft_type": "LORA",
    "base_model_name_or_path": None,
    "task_type": None,
    "inference_mode": True,
    "r": rank,
    "lora_alpha": alpha,
    "lora_dropout": method.dropout,
    "use_rslora": False,
    "use_dora": type(method) is DoRA,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "target_modules": sorted(ranks),
    "modules_to_save": sorted(heads) or None,
    "rank_pattern": {module: r for module, r in sorted(ranks.items()) if r != rank},
    "alpha_pattern": {module: a for module, a in sorted(alphas.items()) if a != alpha},
  }
  return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, config


def _fused(tuned, train, method, places, family):
  """{timm's module: (a [..., in, R], b [R, out], s, magnitude or None)}, q, k and v as one."""
  derived = tuned.derived(train)[method.collection]
  leaves = {path: np.asarray(leaf, np.float32) for path, leaf in derived.items()}
  for path, site in places.items():
    if f"{path}/b" in leaves:
      leaves[f"{path}/s"] = np.full(site.stack, method.scale_at(path))
  leaves = flat(unstack_blocks(nest(leaves)))
  modules = collections.defaultdict(dict)
  for path in sorted(p.removesuffix("/b") for p in leaves if p.endswith("/b")):
    parent, _, name = path.rpartition("/")
    part = name if re.search(r"(^|/)attn/[qkv]$", path) else ""
    modules[f"{parent}/qkv" if part else path][part] = under(path, leaves)
  return {_theirs(path, family): _joined(path, parts, method.share)
          for path, parts in modules.items()}


def _joined(path, parts, share):
  """(a, b, s, magnitude) of timm's layer from the leaves of ours, {"": leaves} or {"q": ...}."""
  if "" in parts:
    v = parts[""]
    return v["a"], v["b"], float(v["s"]), v.get("magnitude")
  parts = {name: parts[name] for name in QKV if name in parts}
  magnitude = None
  if all("magnitude" in v for v in parts.values()):
    if len(parts) < len(QKV):
      raise ValueError(f"{path} has DoRA for {', '.join(parts)} alone; on timm's layer for all of "
                       "q, k and v HF PEFT needs a magnitude for each: merge the adapter instead.")
    magnitude = np.concatenate([v["magnitude"] for v in parts.values()])
  owner = {name: share[0] if name in share else name for name in parts}  # of the A that it reads
  blocks = {owner[name]: v["a"] for name, v in parts.items()}
  ends = np.cumsum([a.shape[-1] for a in blocks.values()])
  scales = {float(v["s"]) for v in parts.values()}
  scale = scales.pop() if len(scales) == 1 else 1.0  # else each part's own goes into its B
  width = next(iter(parts.values()))["b"].shape[-1]
  b = np.zeros((ends[-1], len(QKV) * width), np.float32)
  for name, v in parts.items():
    end, column = ends[list(blocks).index(owner[name])], QKV.index(name) * width
    rows = slice(end - len(v["b"]), end)
    b[rows, column : column + width] = v["b"] * np.float32(v["s"] / scale)
  return np.concatenate(list(blocks.values()), -1), b, scale, magnitude


def from_peft(arrays, config, model):
  """(Tuned, trained tree) of HF PEFT's arrays and config, on `model` with as many classes.

  A LoRA on timm's qkv becomes one with share=("q", "k", "v"). Raises ValueError for what is no LoRA
  or DoRA on layers of this model and a head.
  """
  _check_config(config)
  layers, head = _parsed(arrays)
  shape = next((np.shape(w) for (name, leaf), w in head.items() if leaf == "weight"), None)
  if not shape:
    raise ValueError("it holds no head; save it with modules_to_save naming the model's head.")
  model = model.clone(num_classes=shape[0])
  table = sites(model, models.images(model))
  family = _family(table)
  kind = DoRA if config.get("use_dora") else LoRA
  leaves, ranks, alphas, fused = {}, {}, {}, False
  for module, parts in layers.items():
    rank = _at(module, config, "rank_pattern", "r")
    alpha = _at(module, config, "alpha_pattern", "lora_alpha")
    path = _ours(module, family)
    a, b = (_factor(module, parts, name) for name in ("lora_A", "lora_B"))
    if not (a.shape[-1] == b.shape[-2] == rank):
      raise ValueError(f"{module} has rank {a.shape[-1]} in lora_A and {b.shape[-2]} in lora_B, "
                       f"but {rank} in the config.")
    values = {"b": b.reshape(rank, -1)}
    if kind is DoRA:
      values["magnitude"] = _given(module, parts, "lora_magnitude_vector").reshape(-1)
    is_qkv = path.endswith("/qkv")
    paths = [path.removesuffix("qkv") + name for name in QKV] if is_qkv else [path]
    if not ranks.keys().isdisjoint(paths):
      raise ValueError(f"two of its layers are {paths[0]}.")
    leaves[f"{paths[0]}/a"] = a
    for name, value in values.items():
      if value.shape[-1] % len(paths):
        raise ValueError(f"{module} has {value.shape[-1]} outputs, which are no q, k and v.")
      for at, part in zip(paths, np.split(value, len(paths), -1), strict=True):
        leaves[f"{at}/{name}"] = part
    ranks |= dict.fromkeys(paths, rank)
    alphas |= dict.fromkeys(paths, alpha)
    fused = fused or is_qkv
  if not ranks:
    raise ValueError("it holds no lora_A.")
  rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
  lost = sorted(path for path in ranks if path not in table)
  if lost:
    raise ValueError(f"{lost[0]} is no layer of this model.")
  method = kind(
    sites=_pattern(ranks, table, kind),
    rank=rank,
    alpha=float(alpha),
    rslora=bool(config.get("use_rslora")),
    rank_pattern=tuple(f"{path}={r}" for path, r in ranks.items() if r != rank),
    alpha_pattern=tuple(f"{path}={a!r}" for path, a in alphas.items() if a != alpha),
    dropout=float(config.get("lora_dropout", 0)),
    share=QKV if fused else (),
  )
  params = {f"{_ours(module, family)}/{'kernel' if leaf == 'weight' else leaf}":
            np.asarray(w, np.float32).T for (module, leaf), w in head.items()}
  tuned = Tuned(model, (method,), table)
  train = {"params": nest(params), method.collection: nest(leaves)}
  _check_shapes(train, tuned)
  return tuned, jax.tree.map(jnp.asarray, train)


def _check_config(config):
  if config.get("peft_type") != "LORA":
    raise ValueError(f"its peft_type is {config.get('peft_type')!r}; only 'LORA' can be read.")
  for field, value in config.items():
    if field not in READ | FREE and value:
      raise ValueError(f"its config has {field}={value!r}, which cannot be represented.")
  for field, kinds in NEEDED.items():
    if type(config.get(field)) not in kinds:
      raise ValueError(f"its config has {field}={config.get(field)!r}.")
  if config.get("bias", "none") != "none":
    raise ValueError(f"its config has bias={config['bias']!r}: trained biases cannot be read.")
  if config.get("init_lora_weights", True) not in INITIAL:
    raise ValueError(f"its config has init_lora_weights={config['init_lora_weights']!r}, which "
                     "changes the base weights; convert it to a LoRA with HF PEFT first.")


def _parsed(arrays):
  """({module: {"lora_A": array, ...}}, {(module, "weight" or "bias"): array}) of PEFT's names."""
  layers, head = collections.defaultdict(dict), {}
  for name, array in arrays.items():
    inner = name.removeprefix(PREFIX)
    if m := re.fullmatch(r"(.+)\.(lora_[AB]|lora_magnitude_vector)(\.weight)?", inner):
      layers[m[1]][m[2]] = array
    elif inner != name and (m := re.fullmatch(r"(head(?:_dist|\.fc)?)\.(weight|bias)", inner)):
      head[m[1], m[2]] = array
    else:
      raise ValueError(f"it holds {name}, which is no part of a LoRA and no head of timm's.")
  return dict(layers), head


def _given(module, parts, name):
  if name not in parts:
    raise ValueError(f"{module} has no {name}.")
  return np.asarray(parts[name], np.float32)


def _factor(module, parts, name):
  """lora_A as [..., in, r], lora_B as [..., r, out]."""
  w = _given(module, parts, name)
  if w.shape[2:] == (1, 1) and re.search(r"\.fc[12]$", module):
    w = w[:, :, 0, 0]  # a convolution in ConvNeXt's atto
  if w.ndim not in (2, 4):
    raise ValueError(f"{module}.{name} has the shape {w.shape}.")
  return w.transpose((1, 0) if w.ndim == 2 else (2, 3, 1, 0))


def _at(module, config, patterns, field):
  """The value of a config's `field` at a module, as PEFT finds it: the first pattern that fits."""
  value = config[field]
  for pattern, own in config[patterns].items():
    try:
      fits = re.match(rf"(.*\.)?({pattern})$", module)
    except re.error:
      raise ValueError(f"its {patterns} has {pattern!r}, which is no regular expression.") from None
    if fits:
      value = own
      break
  if type(value) not in (int, float):
    raise ValueError(f"its config has {field}={value!r} for {module}.")
  return value


def _pattern(chosen, table, kind):
  """A short regular expression that selects exactly the paths `chosen`; else themselves."""
  ends = sorted({re.split(r"(?:^|/)(?:blocks_\d+/|stages_\d+/(?!blocks))", p)[-1] for p in chosen})
  short = rf"(.*/)?({'|'.join(ends)})"
  found = select(table, short, kind.kinds, head="head.*", asker=kind.__name__)
  return short if set(found) == set(chosen) else tuple(p for p in table if p in chosen)


def _check_shapes(train, tuned):
  wanted = {p: x.shape for p, x in flat(tuned.split(tuned.shapes)[0]).items()}
  found = {p: x.shape for p, x in flat(train).items()}
  for path in wanted | found:
    here, need = found.get(path, "nothing"), wanted.get(path, "nothing")
    if here != need:
      raise ValueError(f"it gives {here} for {path}, but this model needs {need}.")


def _family(table):
  family = names.family_of({f"{path}/{n}" for path, site in table.items() for n, _ in site.params})
  if family is None:
    raise ValueError("the model has no names in timm: it is no ViT, Swin or ConvNeXt of ours.")
  return names.FAMILIES[family]


def _theirs(path, family):
  return _renamed(path, family.to_timm, "in timm")


def _ours(module, family):
  return _renamed(module, family.from_timm, "here")


def _renamed(name, table, where):
  for old, new, kind in table:
    if kind == "module" and (m := re.fullmatch(old, name)):
      return m.expand(new)
  raise ValueError(f"there is no layer {name} {where} in a model of this family.")


def _commonest(values):
  return collections.Counter(values).most_common(1)[0][0]


def _number(x):
  """x to 12 digits, which undoes the rounding of alpha / rank * rank; whole numbers as such."""
  x = float(f"{x:.12g}")
  return int(x) if x == int(x) else x
