"""What every entry point does around its command: keep libraries quiet, and end well after a user's mistake."""

import logging
import os
import sys
from collections.abc import Callable

from finetune.errors import Preempted, RankError, Stopped, UserError
from finetune.parent import follow_the_launcher
from finetune.redact import redacted

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""How torch allocates a GPU's memory, by the variable's present and former name."""
SEGMENTS = "expandable_segments:True"
"""In pieces that grow, so that buckets of many shapes leave no holes; torch reads it as the first tensor is made."""
LOGGERS = ("bitsandbytes", "torch.distributed.run")
MISTAKEN, PREEMPTED, INTERRUPTED = 2, 75, 130
"""Exit codes; the second is EX_TEMPFAIL of sysexits.h."""


def enter(command: Callable[[], None]) -> None:
    """Run a command. A mistake of the user's ends it with one sentence on stderr, once per node, and exit code 2; a
    request to stop that was followed, likewise with 75, or with 0 where nothing shall start it again; one that comes
    while there is nothing to save, with 130."""
    follow_the_launcher()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = SEGMENTS
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        command()
    except (Preempted, Stopped) as error:
        if _is_first_on_node():
            print(redacted(str(error)), file=sys.stderr)
        sys.exit(PREEMPTED if isinstance(error, Preempted) else 0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except UserError as error:
        if _is_first_on_node() or isinstance(error, RankError):
            # OmegaConf appends lines of its own to what a dataclass raises.
            told = [f"error: {str(error).splitlines()[0]}", *error.details]
            print(*map(redacted, told), sep="\n  ", file=sys.stderr)
        sys.exit(MISTAKEN)


def _is_first_on_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
