"""SAN: scale each layer's output, and let the next layer's weights see that scale.

    y = scale * (W (source * x) + b)            source = recal * resize(scale of the layer before)

The paper's gamma is `scale`, its A is `recal`. Which layer feeds which is data, the wiring.

Source: Dai et al. 2024, "Discovering Long-Term Effects on Parameter Efficient Fine-tuning",
  arXiv:2409.06706 (v1), equations 4, 12 and 13.
Start: all at one, so the tuned model starts equal to the backbone, bit for bit.
Merge: W' = diag(scale) W diag(source), b' = scale * b, plus the shift where there is one.
Where: a scale on every linear layer and convolution; the norms are trained. The input is scaled by
  what feeds it, resized where its length is another:
  - ViT: q, k, v <- patch embedding; proj <- q, k, v; fc1 <- proj; fc2 <- fc1.
  - Swin: as ViT, but q, k, v <- what created the stream of their stage (patch embedding, or
    reduction); reduction <- the last fc2 before it, whose channels it reads four times.
  - ConvNeXt: dwconv <- what created the stream of its stage (stem, or the convolution between
    stages); fc1 <- dwconv; fc2 <- fc1; convolution between stages <- the last fc2 before it.
Count: outputs and, where an input is scaled, inputs, one set for q, k and v, beside the norms.
  ViT-B/16: "resize" 83,712 + 64,512 + 38,400; "base" and mode "nt" 122,112; mode "sp" 177,408,
  85,248 of "base". ConvNeXt-B 257,536 without its last norm, which papers count with the head.
Cost: two products per feature, 0.1 % of a ViT-B/16's forward pass, until it is merged.
Releases: scripts for ViTs alone; the wiring of the others follows their rules.
  - `variant` "resize", SAN_resize_smooth.py, has every ingredient of the paper and is the default;
    "base", SAN_base.py, has no wire to proj and bypasses the recalibration, "base_recal" does not.
  - `variant` "paper" reads equations 5, 12 and 13 literally: the previous layer feeds q, k and v,
    the recalibration has a bias, a shift follows the scale. The scripts have none of these.
  - The scripts train all norms, which the paper does not mention: `train_norm` False does not.
  - The penalty of equation 8 is in no script, nor is its factor published: `reg_lambda`.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from peft_jax.method import Method
from peft_jax.methods.axes import along
from peft_jax.methods.scope import norm_paths
from peft_jax.methods.wiring import (
  Wire,
  given_wires,
  is_stem,
  known_wires,
  resized,
  stacked,
  wires_among,
)
from peft_jax.tree import flat, nest

# variant: (recal, qkv_source, proj_source, shift).
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

  variant: "resize", "base", "base_recal" or "paper"; sets the next four options, each of which
    overrides it.
  recal: "none", "diag" (source = recal * s) or "diag_bias" (source = recal * s + recal_bias).
  qkv_source: "stem" (the patch embedding's scale in every block; in a Swin or a ConvNeXt, whose
    dwconv it feeds, that of what created the stage's stream) or "prev_fc2", of the block before.
  proj_source: "interp" (the 3D scale of q, k, v resized to D), "v_slice" (the scale of v, which
    is index-aligned) or "none".
  shift: adds equation 5's shift after the output scale.
  mode: "both"; "nt", output scales only; "sp", propagation only (the stem's scale stays).
  train_norm: trains every norm.
  reg_lambda: adds reg_lambda * sum((scale - 1)^2) over all scales to the loss (equation 8).
  wiring: Wire(site, (source, ...)) tuples for a model whose family is not known here; () finds them
    by module names.
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
    wires = given_wires(self.wiring)
    qkv, proj = self._option("qkv_source"), self._option("proj_source")
    if self.mode == "nt":
      wires = ()
    elif not wires:
      wires = known_wires(table, qkv, proj)
    wires = wires_among(chosen, wires, chosen if self.wiring else table)
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
      parts = [stacked(leaves[f"{p}/scale"], table[p], site) for p in wire.sources]
      source = jnp.concatenate(parts, axis=-1)
      if wire.before:
        first = stacked(leaves[f"{wire.before}/scale"], table[wire.before], site)
        source = jnp.concatenate([first[:1], source[:-1]])
      source = resized(source, site.inputs)
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
