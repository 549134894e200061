"""The same questions through vLLM's offline `LLM`, for those who have a GPU and many of them.

Written against vLLM's documentation and source (`vllm/entrypoints/llm.py`, `vllm/sampling_params.py`,
`vllm/inputs`), and tested with a double that has the same signatures: it has not run beside the real one. Our own cells
get there by `prism export CELL --format llava`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.own_prompt import Options, OwnPrompt, Row, rows_of
from prism_sweeps.evaluation.requests import Answer, Answered, Request, Unanswered, by_image

INSTALL = "pip install 'prism-sweeps[vllm]' (it wants a GPU)"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "bf16-true": "bfloat16"}
WINDOW = 4
"""Batches given to vLLM at a time, which makes its own of them."""
TABLE = ("llava",)
"""Without a chat template vLLM puts images into the text of these as transformers does; of others each its own way."""


def load_vllm(name: str, revision: str | None, processor: Any, precision: str, engine: Engine) -> VLLMModel:
    """The model of a folder, or of the hub at a commit. Raises ConfigError where vLLM is missing or refuses it."""
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(f"model=vllm:{name} needs vLLM, which is not installed ({error}); {INSTALL}") from error
    model_type = vllm_type(name, revision)
    prompt = OwnPrompt.of(processor, model_type)
    if prompt.written is not None and model_type not in TABLE:
        raise ConfigError(
            f"model=vllm:{name} is of type '{model_type}' and has no chat template, so how vLLM wants it asked is not "
            f"known; ask it by transformers: model=hf:{name}"
        )
    try:
        llm = vllm.LLM(
            model=name,
            revision=revision,
            tokenizer_revision=revision,
            trust_remote_code=False,
            load_format="safetensors",
            dtype=DTYPES[precision],
            seed=0,
            limit_mm_per_prompt={"image": 1},
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ConfigError(f"vLLM cannot run {name}: {error}") from error
    return VLLMModel(llm, vllm.SamplingParams, prompt, engine.eval_batch)


def vllm_type(name: str, revision: str | None) -> str:
    """The model_type of its config. Raises ConfigError."""
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).model_type)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{name}: its config cannot be read: {error}") from error


class VLLMModel:
    """A `vllm.LLM` (`evaluation.requests.Answerer`): prompts and options are those of `HFModel`.

    Free text is greedy: temperature 0, and none of the defaults that a model brings along, which vLLM takes only where
    it is given no parameters. Options are put behind the prompt, and read off the log-likelihoods of prompt tokens.
    """

    def __init__(self, llm: Any, parameters: Any, prompt: OwnPrompt, batch: int) -> None:
        """`parameters` is the class `vllm.SamplingParams`."""
        self.llm, self.parameters, self.prompt, self.batch = llm, parameters, prompt, max(1, batch)

    def answers(self, requests: Sequence[Request]) -> Iterator[list[Answered]]:
        ordered = list(chain.from_iterable(by_image(requests)))
        for start in range(0, len(ordered), WINDOW * self.batch):
            rows, answered = rows_of(ordered[start : start + WINDOW * self.batch], self.prompt)
            answered += self.said([row for row in rows if not row.request.options])
            answered += self.chosen([row for row in rows if row.request.options])
            yield answered

    def said(self, rows: Sequence[Row]) -> list[Answered]:
        """Greedy answers."""
        prompts = [self.given(row, []) for row in rows]
        greedy = [
            self.parameters(temperature=0.0, max_tokens=row.request.limit, skip_special_tokens=True) for row in rows
        ]
        found: list[Answered] = []
        for row, output in zip(rows, self.run(rows, prompts, greedy), strict=True):
            said = output if isinstance(output, Unanswered) else Answer(output.outputs[0].text.strip(), size=row.size)
            found.append((row.request, said))
        return found

    def chosen(self, rows: Sequence[Row]) -> list[Answered]:
        """The likeliest option of each."""
        options = [Options.of(row, self.prompt) for row in rows]
        asked = [(place, ids) for place, each in enumerate(options) for ids in each.ids]
        prompts = [self.given(rows[place], ids) for place, ids in asked]
        # One token must be generated; it is not looked at. With 0 only the prompt's own tokens are told of.
        reading = [self.parameters(temperature=0.0, max_tokens=1, prompt_logprobs=0) for _ in asked]
        outputs = self.run([rows[place] for place, _ in asked], prompts, reading)
        scores: list[list[float]] = [[] for _ in rows]
        refused: dict[int, Unanswered] = {}
        for (place, ids), output in zip(asked, outputs, strict=True):
            if isinstance(output, Unanswered):
                refused[place] = output
            else:
                scores[place].append(mean_of_last(output.prompt_logprobs, ids))
        found: list[Answered] = []
        for place, row in enumerate(rows):
            found.append((row.request, refused.get(place) or row.likeliest(scores[place])))
        return found

    def given(self, row: Row, after: Sequence[int]) -> dict[str, Any]:
        """A prompt as tokens, in which vLLM itself puts the image's, and what comes behind."""
        ids = self.prompt.ids(row.text + self.prompt.tail)
        return {"prompt_token_ids": [*ids, *after], "multi_modal_data": {"image": row.image}}

    def run(self, rows: Sequence[Row], prompts: Sequence[dict[str, Any]], parameters: Sequence[Any]) -> list[Any]:
        """vLLM's outputs, in order. It refuses all of a call for one prompt that is too long: then each goes alone."""
        if not prompts:
            return []
        try:
            outputs = self.llm.generate(list(prompts), list(parameters), use_tqdm=False)
            # By number of request: in front there may be what is left of a call that was refused.
            return list(outputs)[-len(prompts) :]
        except refusals() as error:
            if len(prompts) == 1:
                return [Unanswered(f"example '{rows[0].request.id}': vLLM takes it not: {error}")]
        alone = zip(rows, prompts, parameters, strict=True)
        return [output for row, prompt, one in alone for output in self.run([row], [prompt], [one])]


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a prompt that is too long; not in all versions a ValueError."""
    try:
        from vllm.exceptions import VLLMValidationError
    except ImportError:
        return (ValueError,)
    return ValueError, VLLMValidationError


def mean_of_last(told: Sequence[Any], ids: Sequence[int]) -> float:
    """Mean log-likelihood (nats) of the last tokens of a prompt, which are `ids`.

    `told` has an entry per position, the first one None: token -> what is known of it.
    """
    last = told[len(told) - len(ids) :]
    return sum(of[token].logprob for of, token in zip(last, ids, strict=True)) / len(ids)
