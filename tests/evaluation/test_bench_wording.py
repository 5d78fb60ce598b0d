"""How a benchmark's prompts are worded: every template in literal words, rewritten prompts, and what is recorded."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from bench_helpers import GENEVAL, geneval_file, lines_of, run_bench, write_lines

from vargpt.configuration import Behaviour
from vargpt.data.instructions import draw_conversation
from vargpt.evaluation.benchmarks.wording import Template, read_rewritten, read_template, rewrite
from vargpt.processing.conversation import Conversation, assistant, user

HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def requests(out: Path) -> list[str]:
    return [line["request"].removeprefix(HEAD) for line in lines_of(out / "prompts.jsonl")]


def test_fixed_templates(tiny_model: Path, tmp_path: Path):
    prompts = geneval_file(tmp_path)
    for name, first in (("plain", "a photo of a fox"), ("depict", "Can you depict a scene of a photo of a fox.")):
        run_bench(tiny_model, "geneval", prompts, tmp_path / name, template=name, limit=1, samples=1)
        assert requests(tmp_path / name)[0] == first + TAIL


def test_a_full_stop_gives_way():
    template = Template("Draw {prompt}. Again: {prompt}", "This is {prompt}!")
    assert template.request("A fox. Snow.") == Conversation(
        messages=(user("Draw A fox. Snow. Again: A fox. Snow."), assistant("This is A fox. Snow!"))
    )


def test_a_file_of_templates_is_chosen_from_by_prompt(tiny_model: Path, tmp_path: Path):
    prompts, file = geneval_file(tmp_path), tmp_path / "templates.json"
    file.write_text(json.dumps(["Draw {prompt}.", {"user": "Show {prompt}!", "assistant": "Here is {prompt}:"}]))
    worded = {}
    for seed in (0, 1):
        run_bench(tiny_model, "geneval", prompts, tmp_path / str(seed), template=str(file), seed=seed, limit=1)
        worded[seed] = [line["template"] for line in lines_of(tmp_path / str(seed) / "prompts.jsonl")]
    one, two = "Draw {prompt}.", "Show {prompt}! -> Here is {prompt}:"
    assert worded == {0: [two, two, two], 1: [two, one, two]}
    assert requests(tmp_path / "0")[0] == f"Show a photo of a fox!{TAIL}Here is a photo of a fox:"
    settings = json.loads((tmp_path / "0" / "run.json").read_text())["settings"]["template"]
    assert settings["templates"] == [one, two] and len(settings["sha256"]) == 64
    file.write_text(json.dumps(["Draw {prompt}."]))
    with pytest.raises(ValueError, match=r"template.sha256"):
        run_bench(tiny_model, "geneval", prompts, tmp_path / "0", template=str(file))


def test_trained_is_worded_as_in_training(tiny_model: Path, tmp_path: Path):
    """By the recipe in the model's folder; without one, all of the small family."""
    prompts, model = geneval_file(tmp_path), tmp_path / "model"
    shutil.copytree(tiny_model, model)
    run_bench(model, "geneval", prompts, tmp_path / "without", template="trained", limit=1, samples=1)
    subjects = [str(record["prompt"]) for record in GENEVAL]
    for index, subject in enumerate(subjects):
        worded = draw_conversation(subject, None, random.Random(f"0:template:{index}"), 1.0)
        assert requests(tmp_path / "without")[index].startswith(worded.messages[0].content[0].text)  # type: ignore[union-attr]
    loop = "{steps: 1, batch_size: 1, learning_rate: 1}"
    (model / "recipe.yaml").write_text(
        f"name: x\nstages: [{{kind: sft, data: [{{task: draw}}], variety: 0.0, loop: {loop}}}]\n"
    )
    run_bench(model, "geneval", prompts, tmp_path / "with", template="trained", limit=1, samples=1)
    assert requests(tmp_path / "with") == [f"draw {subject}{TAIL}" for subject in subjects]
    facts = json.loads((tmp_path / "with" / "run.json").read_text())["settings"]["template"]["trained"]
    assert facts == {"variety": 0.0, "style": "short", "from": "recipe.yaml"}


def test_published_weights_get_the_opening_of_their_answer(tiny_model: Path, tmp_path: Path):
    """And their unconditional branch has no request; `trained` is assumed to be wide."""
    prompts, model = geneval_file(tmp_path), tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "behaviour": asdict(Behaviour.official())}))
    run_bench(model, "geneval", prompts, tmp_path / "draw", limit=1, samples=1)
    opening = "I have designed a drawing of a photo of a fox."
    assert requests(tmp_path / "draw")[0] == f"I need a designed image of a photo of a fox.{TAIL}{opening}"
    assert json.loads((tmp_path / "draw" / "run.json").read_text())["unconditional_request"] is None
    run_bench(model, "geneval", prompts, tmp_path / "trained", template="trained", limit=1, samples=1)
    settings = json.loads((tmp_path / "trained" / "run.json").read_text())["settings"]["template"]
    assert settings["trained"] == {"variety": 1.0, "style": "rich", "from": "assumed"}
    assert all("a photo of" in text.split(TAIL)[1] for text in requests(tmp_path / "trained"))


def test_rewritten_prompts_go_to_the_model_and_not_to_the_scorer(tiny_model: Path, tmp_path: Path):
    prompts, out = geneval_file(tmp_path), tmp_path / "out"
    records = [{"prompt": record["prompt"], "rewritten": f"{record['prompt']}, in detail"} for record in GENEVAL]
    file = write_lines(tmp_path / "rewritten.jsonl", records)
    run_bench(tiny_model, "geneval", prompts, out, rewritten=file, template="plain", limit=1, samples=1)
    line = lines_of(out / "prompts.jsonl")[0]
    assert (line["prompt"], line["rewritten"]) == ("a photo of a fox", "a photo of a fox, in detail")
    assert requests(out)[0] == "a photo of a fox, in detail" + TAIL
    assert json.loads((out / "00000" / "metadata.jsonl").read_text())["prompt"] == "a photo of a fox"
    assert "rewriting   rewritten.jsonl" in (out / "README.txt").read_text()
    with pytest.raises(ValueError, match=r"rewritten_sha256"):
        run_bench(tiny_model, "geneval", prompts, out, template="plain", samples=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no rewritten prompt"),
        ('{"prompt": "a"}\n', r"line 1: expected words under 'rewritten', got no such key"),
        (
            '{"prompt": "a", "rewritten": "b"}\n{"prompt": "a", "rewritten": "c"}\n',
            r"line 2: 'a' was rewritten in another",
        ),
        ("no\n", r"line 1: is no JSON"),
    ],
)
def test_a_bad_file_of_rewritten_prompts(text: str, message: str, tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rewritten(path)


def test_a_prompt_that_was_not_rewritten():
    with pytest.raises(ValueError, match=r"r.jsonl: lacks 2 of 3 prompts, the first is 'b'"):
        rewrite(["a", "b", "c"], {"a": "x"}, Path("r.jsonl"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "Draw {prompt}.\nDraw it.\n", r"t.txt, line 2: the template has no {prompt}, got 'Draw it.'"),
        ("t.txt", "\n", r"holds no template"),
        ("t.json", "[]", r"holds no template"),
        ("t.json", '{"user": "{prompt}"}', r"expected a JSON list of templates, got dict"),
        ("t.json", '["{prompt}", {"asks": "x"}]', r"entry 2: expected a string or"),
        ("t.json", '[{"user": "x"}]', r"entry 1: the template has no {prompt}"),
        ("t.json", "[", r"t.json: is no JSON"),
    ],
)
def test_a_bad_file_of_templates(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_template(str(tmp_path / name))


def test_an_unknown_template():
    with pytest.raises(ValueError, match=r"--template nice: is neither one of draw, plain, depict, trained nor a file"):
        read_template("nice")
