"""How draws are told in words: what moved, what is gone and why."""

from collections import defaultdict, deque
from collections.abc import Sequence

from data_tools.stats.forms import FORM_NAMES
from finetune.data.buckets import Crop
from finetune.data.prompts.prompter import Prompt

FORWARD, BACK = "↑", "↓"
EMPTY = "(empty)"


def gone_by_reason(prompt: Prompt) -> dict[str, list[str]]:
    """What a draw left out, by the reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for text, reason in prompt.gone:
        found[reason].append(text)
    return dict(found)


def moved(drawn: Sequence[str], stored: Sequence[str]) -> list[str]:
    """How each tag of a prompt moved among those that are left: an arrow with its stored place, counted from 1; nothing
    where it did not move or is not known."""
    places: dict[str, deque[int]] = defaultdict(deque)
    for place, text in enumerate(stored, 1):
        places[text].append(place)
    found = [places[text].popleft() if places[text] else 0 for text in drawn]
    known = [place for place in found if place]
    ranks = {place: rank for rank, place in enumerate(sorted(known))}
    shifts = {place: now - ranks[place] for now, place in enumerate(known)}
    return [f"{FORWARD if shifts[p] < 0 else BACK}{p}" if shifts.get(p) else "" for p in found]


def forms_in_words(forms: dict[str, float]) -> str:
    """Shares of forms, as `tags 70% · caption 30%`."""
    return " · ".join(f"{FORM_NAMES[form]} {percent(share)}" for form, share in forms.items())


def percent(share: float) -> str:
    """A share in percent, with a digit behind the point where it needs one."""
    return f"{100 * share:.3g}%"


def at_most(texts: Sequence[str], most: int) -> tuple[Sequence[str], str]:
    """The first of some texts, and how many more there are in words."""
    return texts[:most], f"… {len(texts) - most:,} more" if len(texts) > most else ""


def size(width: int, height: int) -> str:
    """A size in pixels."""
    return f"{width}×{height}"


def cut_away(crop: Crop) -> float:
    """The share of a scaled picture that is cut away."""
    return 1 - crop.width * crop.height / (crop.scaled_width * crop.scaled_height)


def fitted(width: int, crop: Crop) -> str:
    """How a picture of some width in pixels comes to its bucket."""
    factor, away = crop.scaled_width / width, cut_away(crop)
    scaled = "as large as stored" if factor == 1 else f"scaled {'up ' if factor > 1 else ''}{factor:.2f}×"
    return f"{scaled}, {percent(round(away, 3)) if away else 'nothing'} cut away"


def counted(share: float) -> str:
    """How much of a picture its mask leaves."""
    return f"{percent(round(share, 3))} counts, the rest is grey"


def times(per_epoch: float) -> str:
    """How often a sample is drawn; all epochs are shown, though some may pass it over."""
    if per_epoch < 1:
        return f"drawn in {percent(per_epoch)} of epochs"
    return "a draw an epoch" if per_epoch == 1 else f"{per_epoch:g} draws an epoch"
