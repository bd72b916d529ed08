"""Every test: no silent rank or dtype promotion, eight virtual devices, quick compilation."""

import itertools
import os
import pathlib

FLAGS = (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",  # tiny models: compiling is most of the work
)
given = os.environ.get("XLA_FLAGS", "")
missing = [flag for flag in FLAGS if flag.partition("=")[0] not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *missing])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


TESTS = itertools.count()
MAPS = pathlib.Path("/proc/self/maps")  # Linux only


@pytest.fixture(autouse=True)
def few_programs():
  """Lets compiled programs go in time: each holds memory maps, and a process has 65,530 of them."""
  yield
  if next(TESTS) % 20 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
    jax.clear_caches()


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
  """A file of random weights for vit_test: reading it is much faster than drawing them."""
  from peft_jax import models, weights

  path = tmp_path_factory.mktemp("weights") / "vit_test.npz"
  model = models.create("vit_test", num_classes=10)
  weights.save(path, weights.load("random", model, key=jax.random.key(7))[0])
  return str(path)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
  """For programs: one device, quick compilation, and that once for all with the same program."""
  return {
    **os.environ,
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
