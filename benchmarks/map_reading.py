"""What a language model of the nano zoo can look up in a map it has just read, by kind of question.

    python benchmarks/map_reading.py nano-base [--scenes 60]

Every family of questions is put to held-out scenes, one question at a time, in the prompt of its benchmark, with the
scene's map where the image would stand and with an empty map. What cannot be read from a map of words will hardly be
read from patches, so this is the first thing to look at after training. The answer counts if greedy decoding gives it
exactly; a box if it overlaps the true one by half.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict

import torch

from prism_sweeps.config.compose import design_space
from prism_sweeps.data.nano_world.balance import Balance, Question
from prism_sweeps.data.nano_world.dialogues import PARTS, Turn
from prism_sweeps.data.nano_world.scenes import generator, pick
from prism_sweeps.evaluation.boxes import overlap, parse_box
from prism_sweeps.models.language import PreTrainedModel, load_language_model, load_tokenizer
from prism_sweeps.models.prompts import PromptFormat, prompt_format
from prism_sweeps.training.zoo.language import placed
from prism_sweeps.training.zoo.maps import FULL, OUTSIDE, map_of

HELD_OUT = 5_000_000
"""Scenes from this number on; training takes the first tens of thousands."""


def asked(scenes: int) -> list[tuple[str, str, Question, Turn]]:
    """Kind, map, question and turn: one question of every family in each scene that has one."""
    balances, found = [Balance() for _ in range(8)], []
    for number in range(HELD_OUT, HELD_OUT + scenes):
        rng = generator("map reading", number)
        drawn, shown = map_of(number, rng, FULL)
        for part in PARTS:
            question = pick(rng, balances).choose(rng, part.family(drawn))
            if question is not None:
                kind = question.kind if part.form.__name__ == "short" else f"{question.kind} ({part.form.__name__})"
                found.append((kind, shown, question, part.form(question, rng)))
    return found


@torch.inference_mode()
def is_right(model: PreTrainedModel, writing: PromptFormat, shown: str, question: Question, turn: Turn) -> bool:
    words = writing.tokenizer(shown, add_special_tokens=False)["input_ids"]
    prompt = writing.question(turn[0])
    wanted = [*writing.answer(turn[1]), writing.end_ids[0]]
    ids = torch.tensor([[*prompt[:1], *words, *prompt[1:]]])
    embedded = placed(model.get_input_embeddings(), ids, [len(words)])
    mask = torch.ones_like(ids)
    said = model.generate(
        inputs_embeds=embedded,
        attention_mask=mask,
        max_new_tokens=32 if question.box else len(wanted),
        do_sample=False,
        eos_token_id=writing.end_ids,
        pad_token_id=writing.end_ids[0],
    )[0].tolist()
    if question.box is None:
        return said == wanted
    found = parse_box(writing.decode(said))
    return found is not None and overlap(found, question.box) >= 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llm", choices=["nano-base", "nano-instruct"])
    parser.add_argument("--scenes", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    llm = design_space().part("llm", options.llm, {})
    writing, model = prompt_format(llm, load_tokenizer(llm)), load_language_model(llm).eval()
    right = defaultdict[str, list[tuple[bool, bool]]](list)
    questions = asked(options.scenes)
    for done, (kind, shown, question, turn) in enumerate(questions):
        print(f"\r{done}/{len(questions)} questions", end="", file=sys.stderr, flush=True)
        empty = f" {OUTSIDE}" * len(shown.split())
        right[kind].append(tuple(is_right(model, writing, each, question, turn) for each in (shown, empty)))
    table = {}
    print(file=sys.stderr)
    print(f"{'kind':28}{'questions':>10}{'map':>8}{'empty':>8}")
    for kind, pairs in sorted(right.items()):
        read, blind = (sum(each) / len(pairs) for each in zip(*pairs, strict=True))
        table[kind] = [len(pairs), round(read, 3), round(blind, 3)]
        print(f"{kind:28}{len(pairs):>10}{read:>8.2f}{blind:>8.2f}")
    print(json.dumps({"benchmark": "map_reading", "llm": options.llm, "ratios": {}, "right": table}))


if __name__ == "__main__":
    main()
