"""What every entry point does around its command: keep libraries quiet, and end well after a user's mistake."""

import logging
import os
import sys
from collections.abc import Callable

from finetune.errors import RankError, UserError

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
LOGGERS = ("bitsandbytes", "torch.distributed.run")


def enter(command: Callable[[], None]) -> None:
    """Run a command. A mistake of the user's ends it with one sentence on stderr, once per node, and exit code 2."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        command()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, RankError):
            # OmegaConf appends lines of its own to what a dataclass raises.
            print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
