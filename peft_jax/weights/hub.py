"""Files of the Hugging Face hub by name, from its cache or, with its package, from the network.

    hf-hub:owner/name, hf-hub:owner/name@revision      any repository
    vit_base_patch16_224.augreg_in21k                  a name of timm: hf-hub:timm/...

The cache is the hub's own, shared with its other programs, and read without its package:

    $HF_HUB_CACHE/models--owner--name/refs/main                        the name of a snapshot
    $HF_HUB_CACHE/models--owner--name/snapshots/NAME/model.safetensors
"""

import os
import pathlib
import re

FILES = ("model.safetensors", "pytorch_model.bin")
PACKAGE = "huggingface_hub"
INSTALL = "pip install 'peft_jax[hub]'"
# Names of timm before 0.8, as papers and their codes write them.
ALIASES = {
  "vit_base_patch16_224_in21k": "vit_base_patch16_224.augreg_in21k",
  "vit_large_patch16_224_in21k": "vit_large_patch16_224.augreg_in21k",
  "vit_small_patch16_224_in21k": "vit_small_patch16_224.augreg_in21k",
  "vit_tiny_patch16_224_in21k": "vit_tiny_patch16_224.augreg_in21k",
  "vit_huge_patch14_224_in21k": "vit_huge_patch14_224.orig_in21k",
  "swin_base_patch4_window7_224_in22k": "swin_base_patch4_window7_224.ms_in22k",
  "convnext_base_in22k": "convnext_base.fb_in22k",
}
TIMM = re.compile(r"(?:timm/)?((?:vit|deit|deit3|swin|convnext|convnextv2)_\w+\.\w+)")
SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".bin", ".tar", ".onnx", ".npy")  # of files
WORD = r"[\w-][\w.-]*"
NAMED = re.compile(rf"hf[-_]hub:({WORD}/{WORD})(?:@({WORD}))?")


def parse(spec):
  """(owner/name, revision) of a spec, or None when it names nothing on the hub."""
  if m := NAMED.fullmatch(spec):
    return m[1], m[2] or "main"
  if m := TIMM.fullmatch(ALIASES.get(spec, spec)):
    return (f"timm/{m[1]}", "main") if not m[1].endswith(SUFFIXES) else None
  return None


def cache():
  """The hub's cache folder, by the rules of its package."""
  for name, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"),
                       ("XDG_CACHE_HOME", "huggingface/hub")):
    if os.environ.get(name):
      return pathlib.Path(os.environ[name]).expanduser() / inside
  return pathlib.Path("~/.cache/huggingface/hub").expanduser()


def cached(repository, revision="main"):
  """The file of a repository in the cache, or None."""
  folder = cache() / f"models--{repository.replace('/', '--')}"
  snapshots = [revision]
  try:
    found = (folder / "refs" / revision).read_text().strip()
    if re.fullmatch(WORD, found):
      snapshots.insert(0, found)
  except (OSError, UnicodeDecodeError):
    pass  # no such name: it may be a snapshot's own
  for snapshot in snapshots:
    for name in FILES:
      if (file := folder / "snapshots" / snapshot / name).is_file():
        return file
  return None


def fetch(spec):
  """The local file of a spec that `parse` knows; downloaded into the cache where it is not there.

  Raises FileNotFoundError, which says what to download from where, without the package or network.
  """
  repository, revision = parse(spec)
  if file := cached(repository, revision):
    return file
  if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
    why = "HF_HUB_OFFLINE is set"
  else:
    file, why = download(repository, revision)
    if file:
      return pathlib.Path(file)
  place = cache() / f"models--{repository.replace('/', '--')}" / "snapshots" / revision / FILES[0]
  raise FileNotFoundError(
    f"The weights {spec} are not in the cache of the Hugging Face hub, and {why}. Download "
    f"https://huggingface.co/{repository}/resolve/{revision}/{FILES[0]} and give its path as the "
    f"weights, or place it as {place}.")


def download(repository, revision):
  """(file, "") or (None, why not)."""
  try:
    from huggingface_hub import hf_hub_download
  except ImportError:
    return None, f"its package is not installed ({INSTALL})"
  why = ""
  for name in FILES:
    try:
      return hf_hub_download(repository, name, revision=revision), ""
    except Exception as error:  # the hub's, its HTTP library's and the system's errors, by version
      first = (str(error).strip() or "no reason given").splitlines()[0]
      why = why or f"fetching them failed ({type(error).__name__}: {first[:200]})"
  return None, why


def check(file, sha256):
  """Raises ValueError where the hub's cache says that `file` should have another SHA-256.

  The hub keeps large files as blobs named by their SHA-256; a snapshot links to them.
  """
  blob = pathlib.Path(file).resolve().name
  if re.fullmatch(r"[0-9a-f]{64}", blob) and blob != sha256:
    raise ValueError(f"{file} is damaged: its SHA-256 is {sha256[:12]}..., not {blob[:12]}...; "
                     "delete it and fetch it again.")
