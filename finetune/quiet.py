"""Libraries that talk about themselves on stderr: entry points call this before the first heavy import."""

import logging
import os

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
LOGGERS = ("bitsandbytes", "torch.distributed.run")


def quiet_libraries() -> None:
    """Let errors through and nothing else; what the user has set in the environment wins."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
