"""Every test: no silent rank or dtype promotion, eight virtual devices, quick compilation."""

import os

FLAGS = (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",  # tiny models: compiling is most of the work
)
given = os.environ.get("XLA_FLAGS", "")
missing = [flag for flag in FLAGS if flag.partition("=")[0] not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *missing])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
