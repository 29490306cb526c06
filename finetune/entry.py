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
