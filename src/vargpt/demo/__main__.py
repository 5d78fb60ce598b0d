"""`python -m vargpt.demo`: draw, read, edit and converse, and write it all to `demo-out/index.html`.

Invariant: everything shown is what the model made in this run, with fixed seeds; nothing is picked by hand.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from vargpt.commands.common import bundled_model, choose_threads, find_model
from vargpt.demo.banner import banner, sheet
from vargpt.demo.content import Plan
from vargpt.demo.make import make
from vargpt.demo.page import render
from vargpt.inference.pictures import save_png, write_atomically
from vargpt.inference.pipeline import VargptPipeline


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="vargpt.demo", description="Draw, read and edit; write one page of pictures.")
    parser.add_argument("--output", type=Path, default=Path("demo-out"), help="folder to write (default: demo-out)")
    parser.add_argument("--model", help="model folder (default: the bundled model)")
    parser.add_argument("--banner", type=Path, help="also write the README's picture to this PNG")
    parser.add_argument("--examples", type=Path, default=examples_folder(), help="folder of sample pictures")
    parser.add_argument("--short", action="store_true", help="the first of everything only, a few seconds")
    options = parser.parse_args(arguments)
    plan = Plan().shortened() if options.short else Plan()
    try:
        page = run(find_model(options.model), plan, options.examples, options.output, options.banner)
    except (ValueError, OSError) as error:
        print(f"demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"\nopen {page}")
    return 0


def examples_folder() -> Path:
    """The sample pictures of the checkout."""
    return Path(__file__).resolve().parents[3] / "examples"


def run(model: str, plan: Plan, examples: Path, output: Path, banner_path: Path | None = None) -> Path:
    """Do what the plan asks of the domains that the model knows; write `index.html` and `contact-sheet.png`.

    A model whose folder names no domain is asked for emoji, as the models of the recipe `emoji-small` are.
    """
    say(f"loading {model}")
    pipeline = VargptPipeline.from_pretrained(model)
    choose_threads(pipeline)
    plan = replace(plan, domains=pipeline.habits.domains or ("emoji",))
    demo = make(pipeline, plan, examples, model_label(model), say)
    page = output / "index.html"
    inside = (output.resolve().parent / "docs" / "architecture.md").is_file()
    write_atomically(page, render(demo, ".." if inside else None).encode("utf-8"))
    metadata = {"model": demo.model, "software": "vargpt"}
    save_png(output / "contact-sheet.png", sheet(demo), metadata)
    if banner_path is not None:
        save_png(banner_path, banner(demo), metadata)
    say(f"{demo.score_line}; all in {demo.seconds:.0f} s")
    return page


def say(text: str) -> None:
    """Progress for the person who waits."""
    print(f"  {text}", flush=True)


def model_label(model: str) -> str:
    """How the page names the model: the bundled one by its place in the repository."""
    here, bundled = Path(model).resolve(), bundled_model()
    return f"models/{here.name}" if bundled is not None and here == bundled.resolve() else here.name


if __name__ == "__main__":
    sys.exit(main())
