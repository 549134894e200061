"""transformers' way through benchmarks/gpu.py: LlavaForConditionalGeneration and Trainer, on the same global batches.

What a user would set is set: weights in bf16 (or fp32 under autocast), fused AdamW, the best attention there is,
micro-batches of rows alike in length. Its rows are made beforehand, images included, so it never waits for data.

Shapes: T tokens of a conversation, image tokens written out, B rows, S positions of a batch, I images, C H W an image.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from typing import Any

import torch
from gpu_ways import WARM_UP, Asked, device, examples_of, spec_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from prism_sweeps.config.flops import training_operations
from prism_sweeps.data.batching import Example
from prism_sweeps.data.order import Corpus as Ordered
from prism_sweeps.data.order import batch_stream, word_count
from prism_sweeps.data.steps import sums

Row = dict[str, Tensor | None]


def trainer_steps(asked: Asked, again: str) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of each timed step, and what was in it."""
    count = WARM_UP + asked.steps
    global_batches = batches(asked, count)
    rows = [row(example, asked) for batch in global_batches for example in batch]
    clock = Clock()
    trainer = Trainer(
        model=random_llava(asked),
        args=arguments(asked, again, count),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    return clock.seconds[WARM_UP:], [told(batch, asked) for batch in global_batches[WARM_UP:]]


def batches(asked: Asked, steps: int) -> list[list[Example]]:
    """The global batches of our padded way, the longest rows first, as it cuts them."""
    examples = examples_of(asked, 2 * (WARM_UP + asked.steps) + 8)
    shown = [example.conversation.image is not None for example in examples]
    words = [word_count(example.conversation) for example in examples]
    corpus = Ordered([example.length for example in examples], shown, words)
    stream = batch_stream("grouped", corpus, asked.shape.global_batch, seed=1)
    return [sorted((examples[i] for i in next(stream)), key=lambda each: -each.length) for _ in range(steps)]


def told(batch: Sequence[Example], asked: Asked) -> dict[str, float]:
    """As the package counts them."""
    spec, size = spec_of(asked, "grouped"), asked.shape.micro_batch
    lengths = [example.length for example in batch]
    return {
        "tokens": sum(lengths),
        "supervised": sum(int(example.supervised_T.sum()) for example in batch),
        "padded": sum(max(lengths[at : at + size]) * len(lengths[at : at + size]) for at in range(0, len(batch), size)),
        "operations": sum(training_operations(spec, kind).total(*sums(batch, kind)) for kind in (True, False)),
    }


def row(example: Example, asked: Asked) -> Row:
    """Image tokens stand after BOS; noise in place of an image."""
    shape, pictured = asked.shape, example.conversation.image is not None
    ids_T = torch.from_numpy(example.ids_T).long()
    labels_T = torch.where(torch.from_numpy(example.supervised_T), ids_T, -100)
    if pictured:
        marks = torch.full((shape.patches,), shape.vocabulary)
        ids_T = torch.cat([ids_T[:1], marks, ids_T[1:]])
        labels_T = torch.cat([labels_T[:1], torch.full_like(marks, -100), labels_T[1:]])
    pixels_CHW = torch.randn(3, shape.pixels, shape.pixels, dtype=kept_in(asked)) if pictured else None
    return {"input_ids": ids_T, "labels": labels_T, "pixel_values": pixels_CHW}


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows padded on the right to the longest: ids_BS, labels_BS, mask_BS, pixels_ICHW."""
    batch = {
        "input_ids": pad_sequence([each["input_ids"] for each in rows], batch_first=True),
        "labels": pad_sequence([each["labels"] for each in rows], batch_first=True, padding_value=-100),
        "attention_mask": pad_sequence([torch.ones_like(each["input_ids"]) for each in rows], batch_first=True),
    }
    images = [each["pixel_values"] for each in rows if each["pixel_values"] is not None]
    return batch | ({"pixel_values": torch.stack(images)} if images else {})


def kept_in(asked: Asked) -> torch.dtype:
    return torch.bfloat16 if asked.precision == "bf16-true" else torch.float32


def random_llava(asked: Asked) -> nn.Module:
    """Of the same shape, on the device in its type, the tower frozen; one more token, which stands for images."""
    shape, tower = asked.shape, asked.shape.tower
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=tower.width,
            intermediate_size=4 * tower.width,
            num_hidden_layers=tower.depth,
            num_attention_heads=tower.heads,
            image_size=shape.pixels,
            patch_size=tower.patch,
            hidden_act="quick_gelu",
        ),
        text_config=LlamaConfig(
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            intermediate_size=shape.mlp_width,
            vocab_size=shape.vocabulary + 64,
            max_position_embeddings=shape.context,
        ),
        image_token_index=shape.vocabulary,
        image_seq_length=shape.patches,
    )
    torch.manual_seed(0)
    with device():
        model = LlavaForConditionalGeneration._from_config(
            config, dtype=kept_in(asked), attn_implementation=attention()
        )
    model.model.vision_tower.requires_grad_(False)
    return model


def attention() -> str:
    return "flash_attention_2" if torch.cuda.is_available() and importlib.util.find_spec("flash_attn") else "sdpa"


def arguments(asked: Asked, again: str, steps: int) -> TrainingArguments:
    shape, gpu = asked.shape, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(asked.folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=shape.micro_batch,
        gradient_accumulation_steps=shape.global_batch // shape.micro_batch,
        gradient_checkpointing=again == "full",
        gradient_checkpointing_kwargs={"use_reentrant": False} if again == "full" else None,
        bf16=asked.precision == "bf16",
        optim="adamw_torch_fused",
        learning_rate=2e-5,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=gpu,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not gpu,
    )


class Clock(TrainerCallback):
    """Seconds between the ends of steps, the GPU's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
