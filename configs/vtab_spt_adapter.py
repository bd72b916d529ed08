"""SPT-Adapter on VTAB-1k: ViT-B/16, Adapter-8 behind the matrices a task's gradient asks for.

SPT's Table 1 prints 75.8 (0.30 %) and 76.4 (0.44 %) as the mean of the three groups, best of five
budgets (vtab.SPT_BUDGETS) and best epoch on the test split. Its script places adapters
where LoRA's cost put them, though it comes with files of their own cost, as here. A user's run of
the release at 400,000, of LoRA or Adapter, has 75.1 (its issue 1). Choose the budget on val200
(--config.data.train_split=train800 --config.data.eval_split=val200) and train again. The release
overwrites the initial values (`--config.adapter.initial=trunc_normal_both`), here up is 0, has no
dropout at proj and stochastic depth of its own; not run here.
Trained: 400,000 of 85,798,656, or the nearest that the sweep finds, and the head.

    python train.py --config=configs/vtab_spt_adapter.py:task=cifar100,budget=400000

Needs the image-list folders in data/vtab-1k/<task>/ (made by NOAH's data/vtab-source/get_vtab1k.py)
and AugReg's B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz in weights/.
"""

from peft_jax.train import recipe, vtab


def get_config(argument=""):
  config = vtab.noah(argument, ("spt", "adapter"), also=("budget",))
  recipe.spt_modules(config, argument, "adapter")
  return config.lock()
