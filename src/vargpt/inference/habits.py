"""`Habits`: what a model's folder recommends for talking to it (`generation_config.json`).

Invariant: recommendations change defaults only; whatever a caller asks for wins.

    {"guidance_scale": 2.0, "temperature": 0.5, "top_p": 0.97, "bare_names": true, "memory": "picture",
     "domains": ["scenes", "emoji"], "draft": true}
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from vargpt.data.scenes.parser import facts_of
from vargpt.sampling import Sampling

Memory = Literal["all", "picture"]
Domain = Literal["scenes", "emoji"]
FILE_NAME = "generation_config.json"
_SAMPLING_KEYS = ("guidance_scale", "temperature", "top_p", "text_temperature", "text_top_k", "text_top_p")


@dataclass(frozen=True)
class Habits:
    """Defaults of one model.

    Attributes:
        sampling: settings where a call gives none; the published ones unless the folder says otherwise.
        bare_names: the model learned names without article ("green heart"), so a prompt loses its article and its
            full stop; captions of scenes keep theirs where the model learned scenes.
        memory: what of a conversation the model gets: `all`, or only the current `picture` and the new words, for a
            model that never saw a second turn.
        domains: what it was trained on, as far as demo and evaluation know it; empty: not said.
        draft: the model learned to say what a picture will show before it draws it (`vargpt.data.scenes.drafts`).
    """

    sampling: Sampling = field(default_factory=Sampling.official)
    bare_names: bool = False
    memory: Memory = "all"
    domains: tuple[Domain, ...] = ()
    draft: bool = False

    def subject(self, prompt: str) -> str:
        """The prompt as the model knows such words."""
        words = prompt.strip()
        if not self.bare_names:
            return words
        if "scenes" in self.domains and facts_of(words) is not None:
            return re.sub(r"^(An?\s[^.]*)\.?$", lambda found: found[1][0].lower() + found[1][1:], words, flags=re.I)
        return re.sub(r"^(?:an?|the)\s+(?=\S)", "", words.rstrip(". "), flags=re.IGNORECASE) or words


def read_habits(folder: Path) -> Habits:
    """Read the recommendations of a model's folder; unknown entries (transformers writes some) are left alone.

    Raises:
        ValueError: if the file is broken or a value is out of range.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return Habits()
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sampling = Sampling.official(**{name: values[name] for name in _SAMPLING_KEYS if name in values})
        memory, bare_names = values.get("memory", "all"), values.get("bare_names", False)
        draft = values.get("draft", False)
        domains = tuple(values.get("domains", ()))
        domains_known = set(domains) <= set(get_args(Domain))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected JSON with settings such as guidance_scale ({error})") from error
    if memory not in ("all", "picture") or not isinstance(bare_names, bool) or not isinstance(draft, bool):
        raise ValueError(
            f"{path}: memory is 'all' or 'picture', bare_names and draft true or false, "
            f"got {memory}, {bare_names}, {draft}"
        )
    if not domains_known:
        raise ValueError(f"{path}: domains lists some of {', '.join(get_args(Domain))}, got {values['domains']}")
    return Habits(sampling, bare_names, memory, domains, draft)
