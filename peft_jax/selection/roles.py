"""What SPT may choose from, and how: the role of every parameter of a backbone, by its path.

    matrix    may be given a module, else entries of it are trained
    entries   entries of it are trained, never a module
    vector    trained whole, or entries of it

ViT: the kernels of q, k, v, proj, fc1, fc2 are matrices; biases, norms and layer scales of the
blocks and the norm behind them are vectors: 85,056,000 numbers of ViT-B/16, as in SPT's code
(arXiv:2303.08566). For other backbones it has none; our reading: a Swin's `reduction` and tables of
relative positions and a ConvNeXt's depthwise and downsampling convolutions have entries only; the
norms between stages, layer scales and response norms are vectors.

Left out is what comes before the blocks (patch_embed, stem, a CLIP's norm_pre; tokens, table of
positions) and what comes behind the last norm (pre_logits, head).
"""

import re

BLOCK, BETWEEN = r"(encoder|stages_\d+)/blocks_\d+", r"stages_\d+/downsample"

ROLES = {  # by whole leaf paths; None is left out
  rf"{BLOCK}/(attn/(q|k|v|proj)|(mlp/)?(fc1|fc2))/kernel": "matrix",
  rf"{BLOCK}/dwconv/kernel|{BLOCK}/attn/rel_pos|{BETWEEN}/(reduction|conv)/kernel": "entries",
  rf"{BLOCK}/((attn|mlp)/)?(norm|grn)/(scale|bias)": "vector",
  rf"{BLOCK}/(attn/(q|k|v|proj)|(mlp/)?(fc1|fc2)|dwconv)/bias": "vector",
  rf"{BLOCK}/((attn|mlp)/ls|gamma)": "vector",
  rf"{BETWEEN}/(norm/(scale|bias)|conv/bias)": "vector",
  r"(norm|fc_norm)/(scale|bias)": "vector",
  r"(patch_embed|stem|norm_pre|pre_logits|head|head_dist)/.*": None,
  r"cls_token|dist_token|reg_tokens|pos_embed": None,
}


def roles(table):
  """{leaf path: "matrix" | "vector" | "entries"} of what SPT may choose from.

  table: of `sites`, whose order, that in which the modules run, is the result's.
  Raises ValueError for a parameter that none of the known backbones has, and under a scan.
  """
  found = {}
  for path, site in table.items():
    if site.stack:
      raise ValueError(f"SPT chooses from one kernel a layer, but a scan holds all at {path!r}: "
                       "take model.loop='python' or 'remat'.")
    for name, _ in site.params:
      leaf = f"{path}/{name}".lstrip("/")
      rule = next((rule for rule in ROLES if re.fullmatch(rule, leaf)), None)
      if rule is None:
        raise ValueError(f"SPT knows what to do with the parameters of a ViT, a Swin or a ConvNeXt "
                         f"of peft_jax.models, and {leaf!r} is none of theirs.")
      if ROLES[rule]:
        found[leaf] = ROLES[rule]
  return found
