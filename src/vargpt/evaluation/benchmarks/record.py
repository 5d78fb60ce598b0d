"""The record of a benchmark run: all that decides its pictures, every request in full, and how to score them.

Invariant: `run.json` is written before the first picture, and a folder never gets pictures of other settings than it
says. Every file appears complete or not at all; sessions (shards, restarts) append lines to `sessions.jsonl`.

    run.json        benchmark, settings, weights, versions, start and end
    prompts.jsonl   per prompt: as given, as rewritten, template, the whole request as text, seeds, files
    sessions.jsonl  per start and end of a process: when, which shard, device, versions, how many pictures
    README.txt      the scorer's commands, and what to state with a number
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vargpt.evaluation.benchmarks.layouts import Benchmark
from vargpt.inference.pictures import write_atomically

RUN, PROMPTS, SESSIONS, README = "run.json", "prompts.jsonl", "sessions.jsonl", "README.txt"


@dataclass(frozen=True)
class RunFacts:
    """What is known when a run starts.

    Attributes:
        settings: all that decides the pictures, as JSON values; a folder takes one set of them.
        about: the rest of the record (names, versions, weights files), which may differ between sessions.
    """

    settings: Mapping[str, Any]
    about: Mapping[str, Any]


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_run(folder: Path) -> dict[str, Any] | None:
    """The record of a folder, or None where there is none yet.

    Raises:
        ValueError: for a folder with other things in it, or a record that cannot be read.
    """
    path = folder / RUN
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder for the pictures")
    if not path.is_file():
        others = [item.name for item in folder.iterdir() if not item.name.startswith(".")] if folder.is_dir() else []
        if others:
            raise ValueError(
                f"{folder}: holds {sorted(others)[0]} but no {RUN}; name an empty or new folder with --out"
            )
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is no record of a benchmark run ({error}); name another folder with --out"
        ) from error
    return dict(run)


def check_settings(folder: Path, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse settings other than those of the pictures that are there.

    Raises:
        ValueError: naming every setting that differs, with both values.
    """
    before, here = _flat(recorded), _flat(json.loads(json.dumps(asked)))
    changed = [
        f"{name} {_short(before.get(name))} there, {_short(here.get(name))} asked"
        for name in dict.fromkeys((*before, *here))
        if before.get(name) != here.get(name)
    ]
    if changed:
        raise ValueError(f"{folder}: was begun with other settings ({'; '.join(changed)}); name another folder with "
                         "--out, or give the same settings")  # fmt: skip


def begin_run(
    folder: Path, benchmark: Benchmark, facts: RunFacts, lines: Sequence[Mapping[str, Any]], readme: str
) -> None:
    """Write the record of a new run, or check that a begun one has these settings.

    Args:
        lines: of `prompts.jsonl`.

    Raises:
        ValueError: for other settings, or a folder with other things in it.
    """
    if read_run(folder) is None:
        run = {
            "format": 1, "benchmark": benchmark.name, "settings": dict(facts.settings), **facts.about,
            "started": now(), "finished": None,
        }  # fmt: skip
        write_atomically(folder / RUN, _json(run))
    recorded = read_run(folder)
    assert recorded is not None
    check_settings(folder, recorded["settings"], facts.settings)
    for name, text in (
        (PROMPTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)),
        (README, readme),
    ):
        if not (folder / name).is_file():
            write_atomically(folder / name, text.encode())


def finish_run(folder: Path, pictures: int) -> None:
    """Note that all pictures are there; the first time counts."""
    run = read_run(folder)
    assert run is not None
    if run["finished"] is None:
        write_atomically(folder / RUN, _json({**run, "finished": now(), "pictures": pictures}))


def log_session(folder: Path, event: str, **values: Any) -> None:
    """Append a line about this process; one short write, so that several may do so at once."""
    line = json.dumps({"event": event, "time": now(), **values}, ensure_ascii=False) + "\n"
    with (folder / SESSIONS).open("a", encoding="utf-8") as file:
        file.write(line)


def weights_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every weights file of a model's folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def readme(benchmark: Benchmark, facts: RunFacts, prompts: int, samples: int, size: tuple[int, int]) -> str:
    """`README.txt`: what this is, how to score it, what to say with the number. `size` is (height, width)."""
    settings, about = facts.settings, facts.about
    sampling, template = settings["sampling"], settings["template"]
    rewritten = about["rewritten_file"] or "none"
    note = "" if prompts == benchmark.count else f" (the benchmark has {benchmark.count}: these are not its prompts)"
    return f"""\
{benchmark.title}: pictures of {prompts} prompts{note}, {samples} each, {size[1]}x{size[0]} pixels, by {about["model"]}.

Made by `vargpt bench {benchmark.name}`. The run is complete when "finished" in run.json holds a time.
run.json says what decides the pictures; prompts.jsonl has every request as the model got it, with the seed of every
picture; the same command draws the same pictures again.

How to score (OUT is this folder, as an absolute path):

{benchmark.scoring(samples, size[0])}
State with the number:

  model       {about["model"]}, fingerprint {settings["model"][:16]} (SHA-256 of the weights files: run.json)
  template    {template["name"]}
  rewriting   {rewritten}
  samples     {samples} per prompt, seed {settings["seed"]}
  sampling    guidance {sampling["guidance_scale"]}, temperature {sampling["temperature"]}, top-p {sampling["top_p"]}
  size        {size[1]}x{size[0]}, {settings["dtype"]}
"""


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:20] + "..." + text[-8:]
