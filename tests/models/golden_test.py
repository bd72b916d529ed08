"""All backbones against timm's numbers, in float64."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import peft_jax

# case of golden.py: parameters, logits; by timm 1.0.31 in float64 (timm_live_test.py prints them).
GOLDEN = {
  "vit": (19_685, [
    [0.9772002282, 0.0712450881, 0.0438319499, 0.4785831552, 0.9267867914],
    [0.5740799742, 0.1322268271, -0.0517366203, -0.3175507383, 0.4795053391]]),
  "vit mean-pool": (19_685, [
    [0.7585508657, -0.2108277912, -0.1045935451, 2.0004261597, 0.6840889008],
    [0.0990089713, -0.4060772424, 0.4940424514, 0.6785759591, 0.2738576994]]),
  "dinov2": (19_805, [
    [0.6411969152, 0.3493821070, 3.4100058667, -2.6645293400, 0.2936800643],
    [-0.1441610492, -0.2202118322, 3.0996641146, -1.3647349071, -0.0890920543]]),
  "deit distilled": (19_858, [
    [0.2074759317, -0.5391550209, -0.4675044247, -0.1108185551, 0.5268694671],
    [0.4407650269, -0.1743489132, 0.2007636905, -0.5028421896, 0.9877846349]]),
  "clip": (19_709, [
    [0.8656904129, 1.1425114328, 0.5908951330, -0.7156769398, 0.3022251498],
    [0.6813726794, 1.1981024721, 0.8655823912, -0.6515955532, 0.3536052628]]),
  "swin": (22_277, [
    [1.2262782706, 0.7133924895, 0.3086092446, 0.2721089749, 0.6362433358],
    [0.8712818866, 1.1549699039, 0.1003199296, 0.4999149074, 0.5061041874]]),
  "swin odd": (85_141, [
    [-0.1294623164, 1.4044678914, -1.2905015257, 0.1061202250, -1.0578962011],
    [-0.1483331314, 1.3394624257, -1.2658496021, 0.0201579258, -1.2492852373]]),
  "swin window 12": (26_597, [
    [1.4445448681, 0.9352310453, 0.2484112227, 0.2073268893, 0.6742501979],
    [1.2938587156, 1.0906837788, 0.2611201972, 0.3485772384, 0.6948088377]]),
  "convnext": (18_169, [
    [2.0197343874, 0.9636687025, 0.9058223240, 0.6713817834, 0.3464909714],
    [1.3973963062, 0.7426522916, 1.4028341356, 0.4175257300, 0.3428714651]]),
  "convnext odd": (18_169, [
    [1.2896169698, 0.1709338079, 1.2031311080, 0.5321242205, 0.3469146404],
    [1.6684550004, 0.7681723900, 1.2258786516, 0.4707270694, 0.0937274048]]),
  "convnextv2": (18_701, [
    [0.8432290087, -0.6119406691, 0.3298163048, 0.3088242005, -1.7184251848],
    [1.5903475115, -0.3932537679, 0.2094956143, 0.0831774051, -1.3808462357]]),
}


@pytest.fixture(scope="module")
def golden():
  script = pathlib.Path(__file__).with_name("golden.py")
  root = str(pathlib.Path(peft_jax.__file__).parents[1])
  env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
  run = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  return json.loads(run.stdout)


@pytest.mark.parametrize("case, loop", [(case, "python") for case in GOLDEN] + [
  ("dinov2", "scan_remat"), ("swin", "remat")])
def test_logits_are_timms(golden, case, loop):
  parameters, logits = GOLDEN[case]
  found = golden[f"{case} {loop}"]
  assert found["parameters"] == parameters
  np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-10)
