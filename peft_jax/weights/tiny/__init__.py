"""The tiny pretrained backbones, which come with peft_jax: tiny_vit, tiny_swin, tiny_convnext.

One `.npz` file each, our names, float16, without a head. configs/pretrain_tiny.py trained them, on
drawn pictures and the groups that DINOv2 puts them in; no label made by a person is in them.
"""

import pathlib

HEADS = {"tiny_vit": 4, "tiny_swin": (2, 4, 8), "tiny_convnext": None}  # of the attention
FILES = {name: pathlib.Path(__file__).parent / f"{name}.npz" for name in HEADS}
