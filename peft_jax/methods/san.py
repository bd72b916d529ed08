"""SAN: scale each layer's output, and let the next layer's weights see that scale.

    y = scale * (W (source * x) + b)            source = recal * resize(scale of the layer before)

"Discovering Long-Term Effects on Parameter Efficient Fine-tuning", equations 4, 12 and 13.
The paper's gamma is `scale`, its A is `recal`. All start at one, so the tuned model starts
equal to the backbone, bit for bit. Merging: W' = diag(scale) W diag(source), b' = scale * b.

Which layer feeds which is data, the wiring. Of the official scripts, `resize` has every
ingredient that the paper describes and is the default; see `VARIANTS`.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from peft_jax.method import Method
from peft_jax.methods.axes import along
from peft_jax.methods.scope import norm_paths
from peft_jax.methods.wiring import Wire, is_stem, known_wires
from peft_jax.tree import flat, nest

# variant: (recal, qkv_source, proj_source, shift). The official scripts: SAN_resize_smooth.py;
# SAN_base.py, whose recalibration is bypassed; the same with its recalibration; and equations
# 5, 12 and 13 read literally, with the previous layer feeding q, k and v.
VARIANTS = {
  "resize": ("diag", "stem", "interp", False),
  "base": ("none", "stem", "none", False),
  "base_recal": ("diag", "stem", "none", False),
  "paper": ("diag_bias", "prev_fc2", "interp", True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAN(Method):
  """Output scales at the linear layers `sites` selects, propagated along the wiring.

  Variables at a site (those that the variant and mode use, no others):
    scale: fan_out        ones; not where mode "sp" feeds nothing from it
    shift: fan_out        zeros; with `shift` only, and not at a Swin's reduction, which has no bias
    recal: (inputs,)      ones; at sites with a source, one for q, k and v together
    recal_bias: (inputs,) zeros; with recal "diag_bias" only

  variant: a name of VARIANTS that sets the next options, each of which overrides it.
  recal: "none", "diag" (source = recal * s) or "diag_bias" (source = recal * s + recal_bias).
  qkv_source: "stem" (the patch embedding's scale in every block) or "prev_fc2"; in a Swin or a
    ConvNeXt, whose dwconv it feeds: the scale of what created the stage's stream.
  proj_source: "interp" (the 3D scale of q, k, v resized to D), "v_slice" (the scale of v, which
    is index-aligned) or "none".
  shift: adds equation 5's shift after the output scale.
  mode: "both"; "nt", output scales only; "sp", propagation only (the stem's scale stays).
  train_norm: trains every norm as the official scripts do.
  reg_lambda: adds reg_lambda * sum((scale - 1)^2) over all scales to the loss (equation 8).
  wiring: the wires of a model whose family is not known here; () finds them by module names.

  With norms: ViT-B/16 resize 186,624, base 122,112, nt 122,112, sp 177,408 (base: 85,248);
  resize on Swin-B 255,616, on ConvNeXt-B 259,584 (257,536 without the norm of the head).
  """

  collection: str = "san"
  variant: str = "resize"
  recal: str | None = None
  qkv_source: str | None = None
  proj_source: str | None = None
  shift: bool | None = None
  mode: str = "both"
  train_norm: bool = True
  reg_lambda: float = 0.0
  wiring: tuple[Wire, ...] = ()

  def __post_init__(self):
    choices = {
      "variant": tuple(VARIANTS),
      "recal": (None, "none", "diag", "diag_bias"),
      "qkv_source": (None, "stem", "prev_fc2"),
      "proj_source": (None, "interp", "v_slice", "none"),
      "mode": ("both", "nt", "sp"),
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f"SAN: {name}={getattr(self, name)!r}; it must be one of {allowed}.")

  def _option(self, name):
    value = getattr(self, name)
    fields = ("recal", "qkv_source", "proj_source", "shift")
    return VARIANTS[self.variant][fields.index(name)] if value is None else value

  def bind(self, table, chosen):
    """The same method with every option spelt out and the wires among its own sites."""
    try:
      wires = tuple(Wire(*wire) for wire in self.wiring)
    except TypeError:
      form = "((site, (source, ...)), ...)"
      raise ValueError(f"SAN: wiring={self.wiring!r} is not of the form {form}.") from None
    qkv, proj = self._option("qkv_source"), self._option("proj_source")
    if self.mode == "nt":
      wires = ()
    elif not wires:
      wires = known_wires(table, qkv, proj)
    named = {path for wire in wires for path in (wire.site, *wire.sources, *wire[2:]) if path}
    strangers = named - set(chosen if self.wiring else table)
    if strangers:
      raise ValueError(
        f"SAN: the wiring names {sorted(strangers)[0]!r}, which `sites` does not select."
      )
    wires = tuple(
      wire._replace(recal=wire.recal or wire.site)
      for wire in wires
      if {wire.site, *wire.sources, *filter(None, [wire.before, wire.recal])} <= set(chosen)
    )
    return dataclasses.replace(
      self,
      recal=self._option("recal") if wires else "none",
      qkv_source=qkv,
      proj_source=proj,
      shift=self._option("shift"),
      wiring=wires,
    )

  def init(self, site, key, params):
    fed = {path for wire in self.wiring for path in (*wire.sources, wire.before)}
    variables = {}
    if self.mode != "sp" or site.path in fed or is_stem(site):
      variables["scale"] = jnp.ones(site.fan_out)
    if self.shift and self.mode != "sp" and not site.path.endswith("downsample/reduction"):
      variables["shift"] = jnp.zeros(site.fan_out)
    if self.recal != "none" and any(wire.recal == site.path for wire in self.wiring):
      variables["recal"] = jnp.ones((site.inputs,))
      if self.recal == "diag_bias":
        variables["recal_bias"] = jnp.zeros((site.inputs,))
    return variables

  def derive(self, tree, table):
    """Adds `source`, the input scale, at every wired site; drops what only feeds it."""
    leaves = flat(tree)
    seen = {
      path: leaf
      for path, leaf in leaves.items()
      if not path.rpartition("/")[2].startswith("recal")
    }
    for wire in self.wiring:
      site = table[wire.site]
      parts = [_stacked(leaves[f"{p}/scale"], table[p], site) for p in wire.sources]
      source = jnp.concatenate(parts, axis=-1)
      if wire.before:
        first = _stacked(leaves[f"{wire.before}/scale"], table[wire.before], site)
        source = jnp.concatenate([first[:1], source[:-1]])
      source = _resized(source, site.inputs)
      if self.recal != "none":
        source = source * leaves[f"{wire.recal}/recal"]
      if self.recal == "diag_bias":
        source = source + leaves[f"{wire.recal}/recal_bias"]
      seen[f"{wire.site}/source"] = source
    return nest(seen)

  def weights(self, site, params, v):
    kernel, out = params["kernel"], len(site.fan_out)
    if "source" in v:
      source = v["source"].astype(kernel.dtype)
      if site.is_conv:  # group g of the outputs reads input channels g*n ... (g+1)*n - 1
        rows = jnp.reshape(source, (site.groups, site.fan_in[-1]))
        rows = jnp.repeat(rows, site.fan_out[0] // site.groups, axis=0).T
        kernel = kernel * jnp.reshape(rows, (1,) * (kernel.ndim - 2) + rows.shape)
      else:
        kernel = kernel * jnp.reshape(source, (*site.fan_in, *(1,) * out))
    new = {**params, "kernel": kernel}
    if self._scales_output(site, v):
      new["kernel"] = kernel * along(v["scale"], kernel, out)
      if "bias" in params:
        new["bias"] = params["bias"] * v["scale"].astype(params["bias"].dtype)
    if "shift" in v:
      shift = v["shift"].astype(kernel.dtype)
      new["bias"] = new["bias"] + shift if "bias" in new else shift
    return new

  def call(self, site, v, params, layer, x, rng):
    out = len(site.fan_out)
    if "source" in v:
      shape = (site.inputs,) if site.is_conv else site.fan_in
      x = x * along(jnp.reshape(v["source"], shape), x, len(shape))
    y = layer(params, x)
    if self._scales_output(site, v):
      y = y * along(v["scale"], y, out)
    return y + along(v["shift"], y, out) if "shift" in v else y

  def _scales_output(self, site, v):
    # Mode "sp" only propagates; the stem's scale acts in every mode, as in the official code.
    return "scale" in v and (self.mode != "sp" or is_stem(site))

  def trains(self, table, paths):
    return norm_paths(table) & paths if self.train_norm else frozenset()

  def penalty(self, tree):
    if not self.reg_lambda:
      return 0.0
    scales = [leaf for path, leaf in flat(tree).items() if path.endswith("scale")]
    return self.reg_lambda * sum(jnp.sum(jnp.square(scale - 1)) for scale in scales)


def _stacked(scale, source, site):
  """A source's output scale as [*site.stack, features]."""
  scale = jnp.reshape(scale, (*source.stack, -1))
  if len(source.stack) < len(site.stack):
    scale = jnp.broadcast_to(scale, (*site.stack, scale.shape[-1]))
  return scale


def _resized(scale, size):
  """[..., n] as [..., size]: itself, tiled, or linearly interpolated with aligned corners."""
  n = scale.shape[-1]
  if n == size:
    return scale
  if size % n == 0:
    return jnp.concatenate([scale] * (size // n), axis=-1)
  position = np.arange(size) * (n - 1) / (size - 1) if size > 1 else np.zeros(1)
  low = np.minimum(position.astype(int), n - 2)
  weight = jnp.asarray(position - low, scale.dtype)
  weight = jnp.reshape(weight, (1,) * (scale.ndim - 1) + weight.shape)
  # low + weight * (high - low), so that a vector of ones stays exactly one.
  return scale[..., low] + weight * (scale[..., low + 1] - scale[..., low])
