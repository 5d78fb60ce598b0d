"""Train and measure the rows of docs/ablations.md: `PYTHONPATH=src python benchmarks/ablations.py --processes 14`.

    --scale 0.02        a rehearsal in minutes: steps and prompts times this
    --time-limit 200    stop after so many seconds; the same command goes on
    --report            write docs/ablations.json and the tables of docs/ablations.md from what is there, and no more

Invariant: what is finished is kept and never done again; what a run gives depends on its recipe and seed, not on the
number of processes. Everything lies in `--out`: a folder per trained stage (`ablation_rows.Node`) and one per result,
and `results.json.gz` with all results. It prints what is left to do and, last, one line of JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one thread for each of many processes
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # looking for a GPU must not start it before the forks

import argparse
import gzip
import itertools
import json
import multiprocessing
import statistics
import sys
import time
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import ablation_report
import torch
from ablation_measure import COUNTS, answer, judge, limit
from ablation_rows import ABLATIONS, ORDER, RECIPES, TOKENIZER, Node, Result, Work, plan_work

from vargpt.inference.pipeline import VargptPipeline
from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.loop.stopping import TimeLimitReached
from vargpt.training.output import run_facts, save_result
from vargpt.training.recipes.recipe import load_recipe, save_recipe
from vargpt.training.recipes.schema import TokenizerStage
from vargpt.training.run import train
from vargpt.training.weights.build import build_model

_LEFT_FOR_SAVING = 6.0
"""Seconds before the limit from which nothing new is begun."""


class Bench:
    """One folder of runs, and how each task in it is done."""

    def __init__(self, folder: Path, work: Work, scale: float, deadline: float | None) -> None:
        self.folder, self.work, self.scale, self.deadline = folder, work, scale, deadline

    def left(self) -> float | None:
        """Seconds until the limit."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    # What there is to do ------------------------------------------------------------------------------------------

    def is_done(self, task: str) -> bool:
        """Whether a task has left what it makes."""
        kind, key, *part = task.split()
        if kind == "train":
            return (self.folder / key / "model").is_dir()
        return (self.folder / key / f"{kind}-{part[0]}.json").is_file()

    # How it is done -----------------------------------------------------------------------------------------------

    def do(self, task: str) -> None:
        """Do one task.

        Raises:
            TimeLimitReached: stopped and saved; the same call goes on.
        """
        kind, key, *part = task.split()
        if key == TOKENIZER:
            self._train_tokenizer()
        elif kind == "train":
            self._train(self.work.nodes[key])
        elif kind == "answer":
            self._answer(self.work.results[key], part[0])
        else:
            self._judge(self.work.results[key], part[0])

    def _train_tokenizer(self) -> None:
        """The stages of base.yaml that come before all rows; a rehearsal shortens them, too."""
        base = RECIPES / "base.yaml"
        stages = [stage for stage in load_recipe(base).stages if isinstance(stage, TokenizerStage)]
        overrides = []
        for number, stage in enumerate(stages):
            if self.scale != 1:
                steps = max(2, round(self.scale * (stage.loop.stop_at or stage.loop.steps)))
                overrides += [f"stages.{number}.loop.steps={steps}", f"stages.{number}.loop.stop_at=null"]
        names = [stage.name for stage in stages]
        train(base, None, self.folder / TOKENIZER, overrides, names, self.left())

    def _train(self, node: Node) -> None:
        output, started = self.folder / node.key, time.monotonic()
        if node.parent is None:
            self._start(node, output)
            return
        recipe = node.recipe.model_copy(deep=True)
        recipe.init.model = str(self.folder / node.parent / "model")
        stage = recipe.stages[0]
        if stage.kind == "dpo" and node.pairs is not None:
            stage.pairs = str(self.folder / node.pairs / stage.pairs)
        output.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, output / "alone.yaml")
        train(output / "alone.yaml", None, output, time_limit=self.left())
        facts = run_facts()
        facts["device"] = _processor() if facts["device"] == "cpu" else facts["device"]
        _write(output / "time.json", {"seconds": round(time.monotonic() - started, 1), **facts})

    def _start(self, node: Node, output: Path) -> None:
        """The random weights of a seed with the trained image tokenizer."""
        folder = self.folder / TOKENIZER / "model"
        processor = VargptProcessor.from_pretrained(folder)
        model = build_model(node.recipe, processor)
        trained = VargptForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.image_tokenizer.load_state_dict(trained.image_tokenizer.state_dict())
        output.mkdir(parents=True, exist_ok=True)
        save_result(model.config, model.state_dict(), processor, node.recipe, output / "model")

    def _answer(self, result: Result, part: str) -> None:
        pipeline = VargptPipeline.from_pretrained(self.folder / result.node / "model", dtype=torch.float32)
        pipeline.model.set_behaviour(result.recipe.model.switched())
        count = max(6, round(min(1.0, 10 * self.scale) * COUNTS[part]))
        device = pipeline.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False):
            answers = answer(pipeline, part, _schedule(result), count)
        _write(self.folder / result.key / f"answer-{part}.json", {**answers, "device": run_facts()["device"]})

    def _judge(self, result: Result, part: str) -> None:
        folder = self.folder / result.key
        answers = json.loads((folder / f"answer-{part}.json").read_text())
        model = VargptForConditionalGeneration.from_pretrained(self.folder / TOKENIZER / "model", dtype=torch.float32)
        _write(folder / f"judge-{part}.json", judge(answers, part, model.image_tokenizer, _schedule(result)))

    # What comes of it ---------------------------------------------------------------------------------------------

    def collect(self) -> list[dict[str, Any]]:
        """All results as far as they are there: rows, seed, values and answers by part, seconds of their stages."""
        found = []
        for result in self.work.results.values():
            entry: dict[str, Any] = {"key": result.key, "rows": result.rows, "seed": result.seed, "scale": self.scale}
            for kind in ("judge", "answer"):
                paths = {part: self.folder / result.key / f"{kind}-{part}.json" for part in result.parts}
                entry[kind] = {part: json.loads(path.read_text()) for part, path in paths.items() if path.is_file()}
            entry["seconds"] = self._seconds(result.node)
            found.append(entry)
        return found

    def _seconds(self, key: str | None) -> dict[str, float]:
        """Seconds of the stages that led to a model, by name."""
        seconds: dict[str, float] = {}
        while key is not None:
            node, path = self.work.nodes[key], self.folder / key / "time.json"
            seconds |= {node.stage: json.loads(path.read_text())["seconds"]} if path.is_file() else {}
            key = node.parent
        return seconds

    def conditions(self) -> dict[str, Any]:
        """What the results depend on beside the recipes, for those that are there: machines, versions, commits, and
        the median seconds of each stage."""
        facts: dict[str, set[str]] = {}
        seconds: dict[str, list[float]] = {}
        for node in self.work.nodes.values():
            path = self.folder / node.key / "time.json"
            if not path.is_file():
                continue
            found = json.loads(path.read_text())
            seconds.setdefault(node.stage, []).append(found.pop("seconds"))
            for name in ("device", "threads", "torch", "transformers", "python", "commit"):
                facts.setdefault(name, set()).add(str(found[name]))
        medians = {stage: round(statistics.median(values)) for stage, values in seconds.items()}
        return {**{name: sorted(values) for name, values in facts.items()}, "seconds": medians, "examples": COUNTS}

    def limits(self) -> dict[str, dict[str, list[float]]]:
        """What the image tokenizer leaves of real pictures, by their side in pixels."""
        found = {}
        for side, num_scales in (("64", 5), ("32", 3)):
            path = self.folder / f"limit-{side}.json"
            if not path.is_file():
                folder = self.folder / TOKENIZER / "model"
                model = VargptForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
                schedule = ScaleSchedule(1.0, num_scales, model.config.image_tokenizer.stride)
                _write(path, limit(model.image_tokenizer, schedule, COUNTS["draw"]))
            found[side] = json.loads(path.read_text())
        return found

    def merge(self) -> Path:
        """Write all results into one file, and what others have brought into folders of their own."""
        path = self.folder / "results.json.gz"
        partial = path.with_name(".results.json.gz")
        partial.write_bytes(gzip.compress(json.dumps(self.collect()).encode()))
        os.replace(partial, path)
        return path

    def spread(self, path: Path) -> int:
        """Take over the results of another machine; return how many answers and judgements were new."""
        new = 0
        for entry in json.loads(gzip.decompress(path.read_bytes())):
            for kind in ("judge", "answer"):
                for part, content in entry[kind].items():
                    own = self.folder / entry["key"] / f"{kind}-{part}.json"
                    if not own.is_file():
                        _write(own, content)
                        new += 1
        return new


def _schedule(result: Result) -> ScaleSchedule:
    """Grids of the last stage, at which a row is measured."""
    return result.recipe.stage_schedule(result.recipe.stages[-1])


def _processor() -> str:
    """The CPU's name where the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(errors="replace").splitlines() if facts.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content))
    os.replace(partial, path)


# Processes ------------------------------------------------------------------------------------------------------------


def work_off(bench: Bench, processes: int) -> dict[str, str]:
    """Do all tasks that are left in several processes, in the order of importance; return what failed and why."""
    tasks = bench.work.tasks
    done = {task for task in tasks if bench.is_done(task)}
    waiting = {task for task in tasks if task not in done and not _superfluous(task, tasks, done)}
    failed: dict[str, str] = {}
    numbers = itertools.count()
    idle = [_fork(bench, next(numbers)) for _ in range(max(1, min(processes, len(waiting))))]
    busy: dict[Connection, tuple[str, Any]] = {}
    while True:
        ready = [task for task in tasks if task in waiting and done.issuperset(tasks[task])]
        left = bench.left()
        while idle and ready and (left is None or left > _LEFT_FOR_SAVING):
            task = ready.pop(0)
            waiting.remove(task)
            process, connection = idle.pop()
            connection.send(task)
            busy[connection] = (task, process)
        if not busy:
            break
        for connection in wait(list(busy)):
            task, process = busy.pop(connection)  # type: ignore[index]
            try:
                message, seconds = connection.recv()  # type: ignore[union-attr]
            except EOFError:
                message, seconds = "failed: the process died", 0.0
                process, connection = _fork(bench, next(numbers))
            print(f"{len(done)}/{len(tasks)} {task} {bench_name(bench, task)}: {message} {seconds:.1f} s", flush=True)
            (done.add(task) if message == "done" else failed.update({task: message}))
            idle.append((process, connection))
    for process, connection in idle:
        connection.send(None)
        process.join()
    return failed


def _superfluous(task: str, tasks: dict[str, list[str]], done: set[str]) -> bool:
    """Whether everything that waits for a training is there already."""
    after = [other for other, before in tasks.items() if task in before]
    return bool(after) and all(other in done or _superfluous(other, tasks, done) for other in after)


def bench_name(bench: Bench, task: str) -> str:
    """What a task is about, in words."""
    key = task.split()[1]
    if key == TOKENIZER:
        return "(for all)"
    if key in bench.work.nodes:
        return f"({bench.work.nodes[key].stage}, seed {bench.work.nodes[key].seed})"
    result = bench.work.results[key]
    return f"({', '.join(result.rows)}, seed {result.seed})"


def _fork(bench: Bench, number: int) -> tuple[Any, Connection]:
    """A process that does the tasks it is sent; a fork has everything imported already."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(bench, theirs, number), daemon=False)
    process.start()
    theirs.close()
    return process, ours


def _serve(bench: Bench, connection: Connection, number: int) -> None:
    torch.set_num_threads(1)
    sys.modules["matplotlib"] = None  # type: ignore[assignment]  # no curves: 60 times 3 s, on the way of other stages
    with (bench.folder / f"process-{number}.log").open("a", buffering=1) as log:
        sys.stderr = log
        while (task := connection.recv()) is not None:
            started = time.monotonic()
            print(f"=== {task}", file=log)
            try:
                bench.do(task)
                message = "done"
            except TimeLimitReached:
                message = "stopped by the time limit"
            except Exception as error:  # noqa: BLE001 (other tasks go on; the log has all of it)
                traceback.print_exc(file=log)
                message = f"failed: {' '.join(str(error).split())[:200]}"
            connection.send((message, time.monotonic() - started))


def main() -> int:
    """Run the benchmark; 3 if it was stopped by the limit, 2 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--time-limit", type=float, help="seconds")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="numbers of tables, such as 1,3")
    parser.add_argument("--take", type=Path, help="a results.json.gz of another machine to take over first")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    numbers = [int(number) for number in options.only.split(",")] if options.only else list(ORDER)
    if options.report:
        numbers = [ablation.number for ablation in ABLATIONS]
    work = plan_work(numbers, options.seeds, options.scale)
    deadline = None if options.time_limit is None else started + options.time_limit
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, work, options.scale, deadline)
    if options.take is not None:
        print(f"{bench.spread(options.take)} answers and judgements taken over from {options.take}")
    failed: dict[str, str] = {}
    if not options.report:
        failed = work_off(bench, options.processes)
    bench.merge()
    left = [task for task in work.tasks if not bench.is_done(task)]
    if options.report:
        ablation_report.write(bench.collect(), bench.limits(), bench.conditions(), options.seeds)
    print(json.dumps({"nodes": len(work.nodes), "results": len(work.results), "left": len(left),
                      "failed": failed, "seconds": round(time.monotonic() - started, 1)}))  # fmt: skip
    if any(message.startswith("failed") for message in failed.values()):
        return 2
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
