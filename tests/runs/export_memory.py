"""How much memory an export takes: `python -m tests.runs.export_memory RUN OUT FORMAT DTYPE` prints the peak of the
process above its imports, and the size of what was written, in bytes."""

import json
import sys
from pathlib import Path

import finetune.checkpoint.export
import finetune.checkpoint.trained
import finetune.checkpoint.webui
import finetune.model.families  # noqa: F401
from finetune.runs.checkpoints import find
from finetune.runs.export import write


def memory(name: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS is now, VmHWM the peak; pages of mapped files count as well."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Export, and print the figures as JSON."""
    run, out, form, dtype = sys.argv[1:]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is counted from here
    before = memory("VmRSS")
    write(Path(run), find(Path(run), None), Path(out), form=form, dtype=dtype, average=None)
    files = [path for path in [Path(out), *Path(out).rglob("*")] if path.is_file()]
    print(json.dumps({"peak": memory("VmHWM") - before, "written": sum(path.stat().st_size for path in files)}))


if __name__ == "__main__":
    main()
