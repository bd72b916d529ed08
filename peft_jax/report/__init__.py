"""What selections and results say, as tables and figures: `python -m peft_jax report`."""
