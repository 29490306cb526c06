"""Tools that prepare and inspect data sets for `finetune`."""
