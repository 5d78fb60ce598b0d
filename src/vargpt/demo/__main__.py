"""`python -m vargpt.demo`: run all three abilities on the sample pictures and write `demo-out/index.html`.

Invariant: everything shown is what the model made in this run, with the seeds named here; nothing is picked by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from PIL import Image

from vargpt.commands.common import bundled_model, choose_threads, find_model, open_picture
from vargpt.demo.banner import banner
from vargpt.demo.page import Caption, Demo, Edit, Row, Steps, Turn, render
from vargpt.inference.dialogue import Dialogue, Drawn
from vargpt.inference.pictures import contact_sheet, save_png, write_atomically
from vargpt.inference.pipeline import VargptPipeline

# People, whose names combine, come out best; one plain object is shown in each group so that the page does not flatter.
STEP_PROMPTS = (
    "woman superhero",
    "man rowing boat dark skin tone",
    "princess medium skin tone",
    "judge dark skin tone",
    "woman teacher",
    "hamburger",
)
ROW_PROMPTS = ("man pilot light skin tone", "victory hand dark skin tone", "person surfing", "rocket")
SEEDS_PER_ROW = 5
EDITS = (
    ("firefighter.png", "give it a dark skin tone"),
    ("man-guard.png", "give it a light skin tone"),
    ("firefighter.png", "give it a light skin tone"),
    ("man-guard.png", "give it a dark skin tone"),
    ("mermaid.png", "make it a man"),
    ("red-heart.png", "make it green"),
)
HELD_OUT_EDITS = {
    ("firefighter.png", "give it a dark skin tone"),
    ("firefighter.png", "give it a light skin tone"),
    ("mermaid.png", "make it a man"),
}
QUESTION = "what is this?"
LONGEST_ANSWER = 24
COMMANDS = (
    'vargpt draw "a green heart" -o heart.png --seed 7',
    'vargpt chat examples/fox.png "what is this?"',
    'vargpt edit examples/red-heart.png "make it blue" -o blue.png',
    "vargpt chat            # a conversation: /draw, /image, /edit",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="vargpt.demo", description="Draw, read and edit; write one page of pictures.")
    parser.add_argument("--output", type=Path, default=Path("demo-out"), help="folder to write (default: demo-out)")
    parser.add_argument("--model", help="model folder (default: the bundled model)")
    parser.add_argument("--banner", type=Path, help="also write the README's picture to this PNG")
    parser.add_argument("--examples", type=Path, default=examples_folder(), help="folder of sample pictures")
    options = parser.parse_args(arguments)
    try:
        page = run(find_model(options.model), options.examples, options.output, options.banner)
    except (ValueError, OSError) as error:
        print(f"demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"\nopen {page}")
    return 0


def examples_folder() -> Path:
    """The sample pictures of the checkout."""
    return Path(__file__).resolve().parents[3] / "examples"


def run(model: str, examples: Path, output: Path, banner_path: Path | None = None) -> Path:
    """Make all pictures and write `index.html` and `contact-sheet.png`; returns the page."""
    records = [json.loads(line) for line in (examples / "metadata.jsonl").read_text().splitlines()]
    started = time.perf_counter()
    say(f"loading {model}")
    pipeline = VargptPipeline.from_pretrained(model)
    choose_threads(pipeline)
    say(f"drawing {len(STEP_PROMPTS)} pictures scale by scale")
    steps, seconds = draw_steps(pipeline)
    say(f"drawing {len(ROW_PROMPTS)} prompts with {SEEDS_PER_ROW} seeds each")
    rows = draw_rows(pipeline)
    say(f"reading {len(records)} pictures")
    captions = [read_picture(pipeline, examples, record) for record in records]
    say(f"editing {len(EDITS)} pictures")
    edits = [change_picture(pipeline, examples / name, instruction) for name, instruction in EDITS]
    say("holding a conversation")
    turns = converse(pipeline)
    demo = Demo(
        model=model_label(model),
        parameters=pipeline.num_parameters,
        seconds=time.perf_counter() - started,
        per_picture=seconds / len(STEP_PROMPTS),
        steps=steps,
        rows=rows,
        captions=captions,
        edits=edits,
        turns=turns,
        commands=COMMANDS,
    )
    page = output / "index.html"
    write_atomically(page, render(demo).encode("utf-8"))
    save_png(output / "contact-sheet.png", sheet(demo), {"model": demo.model, "software": "vargpt"})
    if banner_path is not None:
        save_png(banner_path, banner(demo), {"model": demo.model, "software": "vargpt"})
    right = sum(item.said.strip() == item.name for item in captions)
    say(f"{right} of {len(captions)} pictures named exactly; all in {demo.seconds:.0f} s")
    return page


def say(text: str) -> None:
    """Progress for the person who waits."""
    print(f"  {text}", flush=True)


def model_label(model: str) -> str:
    """How the page names the model: the bundled one by its place in the repository."""
    bundled = bundled_model()
    if bundled is not None and Path(model).resolve() == bundled.resolve():
        return f"models/{bundled.name}"
    return Path(model).name


def draw_steps(pipeline: VargptPipeline) -> tuple[list[Steps], float]:
    """Draw the first section one by one, keeping a preview of every scale; also the seconds it took."""
    drawn, seconds = [], 0.0
    for prompt in STEP_PROMPTS:
        canvases, grids = [], []

        def keep(pipe: VargptPipeline, step: int, timestep: int, values: dict) -> None:
            canvases.append(values["canvas"])  # noqa: B023 (called before the loop goes on)
            grids.append(values["grid"])  # noqa: B023

        begun = time.perf_counter()
        pictures = pipeline.draw(prompt, seed=0, callback_on_step_end=keep)
        seconds += time.perf_counter() - begun
        previews = [pipeline.preview(canvas)[0] for canvas in canvases[:-1]]
        drawn.append(Steps(prompt, [*previews, pictures.images[0]], grids))
    return drawn, seconds


def draw_rows(pipeline: VargptPipeline) -> list[Row]:
    """Draw the second section: every prompt with several seeds, all in one batch."""
    pictures = pipeline.draw(list(ROW_PROMPTS), num_images_per_prompt=SEEDS_PER_ROW, seed=0).images
    return [
        Row(prompt, pictures[index * SEEDS_PER_ROW : (index + 1) * SEEDS_PER_ROW])
        for index, prompt in enumerate(ROW_PROMPTS)
    ]


def read_picture(pipeline: VargptPipeline, examples: Path, record: dict[str, str]) -> Caption:
    """Ask what a sample picture shows."""
    picture = open_picture(examples / record["file_name"])
    said = "".join(pipeline.chat([{"role": "user", "content": [picture, QUESTION]}], max_new_tokens=LONGEST_ANSWER))
    return Caption(picture, said, record["text"], record["part"] == "validation")


def change_picture(pipeline: VargptPipeline, path: Path, instruction: str) -> Edit:
    """Edit a sample picture."""
    picture = open_picture(path)
    after = pipeline.edit(picture, instruction, seed=0).images[0]
    return Edit(picture, instruction, after, (path.name, instruction) in HELD_OUT_EDITS)


def converse(pipeline: VargptPipeline) -> list[Turn]:
    """A conversation that draws a picture, is asked about it, and edits it."""
    dialogue, turns = Dialogue(pipeline, seed=0, max_new_tokens=LONGEST_ANSWER), []
    for kind, words in (("draw", "blue circle"), ("say", QUESTION), ("edit", "make it red"), ("say", QUESTION)):
        turns.append(Turn("user", f"draw {words}" if kind == "draw" else words))
        if kind == "say":
            answer = "".join(piece for piece in dialogue.say(words) if not isinstance(piece, Drawn))
            turns.append(Turn("assistant", answer))
        else:
            drawn = dialogue.draw(words) if kind == "draw" else dialogue.edit(words)
            turns.append(Turn("assistant", "", drawn.image))
    return turns


def sheet(demo: Demo) -> Image.Image:
    """All pictures of the page on one PNG."""
    rows: list[list[Image.Image | None]] = []
    labels = []
    for item in demo.steps:
        rows.append(list(item.pictures))
        labels.append(f"{item.prompt}, scale by scale")
    for row in demo.rows:
        rows.append(list(row.pictures))
        labels.append(f"{row.prompt}, {len(row.pictures)} seeds")
    for edit in demo.edits:
        rows.append([edit.before, edit.after])
        labels.append(edit.instruction)
    return contact_sheet(rows, labels, cell=96)


if __name__ == "__main__":
    sys.exit(main())
