"""The way of transformers through benchmarks/train.py: LlavaForConditionalGeneration and Trainer, as a user has them.

Its own loop, loss, optimiser and clipping; a data set and a collator as one writes them for LLaVA: image tokens
written out, labels of -100, rows padded on the right, images decoded and transformed when they are due.

Shapes: T positions of a conversation, its image tokens among them, B rows, S positions of a batch, I images of it,
C H W an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from prism_sweeps.config.schema import Stage
from prism_sweeps.data.batching import Example
from prism_sweeps.data.steps import StepMaker
from prism_sweeps.models.resize import load_image
from prism_sweeps.training.optimiser import schedule

IGNORED = -100


@dataclass
class Rows(Dataset[dict[str, Tensor | None]]):
    """Conversations in the order of their batches."""

    examples: Sequence[Example]
    transform: Callable[..., dict[str, Tensor]]
    patches: int
    image_token: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, Tensor | None]:
        example = self.examples[number]
        image = example.conversation.image
        ids_T = torch.from_numpy(example.ids_T).long()
        labels_T = torch.where(torch.from_numpy(example.supervised_T), ids_T, IGNORED)
        if image is None:
            return {"input_ids": ids_T, "labels": labels_T, "pixel_values": None}
        shown = [torch.full((self.patches,), value) for value in (self.image_token, IGNORED)]
        return {
            "input_ids": torch.cat([ids_T[:1], shown[0], ids_T[1:]]),
            "labels": torch.cat([labels_T[:1], shown[1], labels_T[1:]]),
            "pixel_values": next(iter(self.transform(load_image(image)).values())),
        }


def collate(rows: Sequence[dict[str, Tensor | None]]) -> dict[str, Tensor]:
    """input_ids_BS, attention_mask_BS, labels_BS, and pixel_values_ICHW where there is an image."""
    ids, labels = ([row[key] for row in rows] for key in ("input_ids", "labels"))
    pixels = [row["pixel_values"] for row in rows if row["pixel_values"] is not None]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=0),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }
    return batch | ({"pixel_values": torch.stack(pixels)} if pixels else {})


class WatchedTrainer(Trainer):
    """Trainer with our learning rates, which transformers reads one step earlier; keeps the loss of each step."""

    def __init__(self, rate: Callable[[int], float], **settings: Any) -> None:
        super().__init__(**settings)
        self.rate = rate
        self.losses: list[Tensor] = []

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.rate)
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(loss)
        return loss


class AfterEachStep(TrainerCallback):
    """Calls `act` when Trainer begins, and after each of its steps."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.act(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.act(state.global_step)


def trainer_of(
    folder: Path, maker: StepMaker, stage: Stage, output: Path, after: Callable[[int], None]
) -> WatchedTrainer:
    """Trainer on the model in `folder` and the very batches of `maker`, its tower frozen; `after` sees every step."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    model.model.vision_tower.requires_grad_(False)
    steps = len(maker.batches)
    rows = Rows(
        [maker.examples[index] for batch in maker.batches for index in batch],
        maker.layout.transform,
        maker.layout.patches,
        model.config.image_token_id,
    )
    trainer = WatchedTrainer(
        rate=lambda step: schedule(min(step, steps - 1), steps, stage.warmup_ratio),
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=stage.global_batch,
            max_steps=steps,
            train_sampling_strategy="sequential",
            learning_rate=stage.learning_rate,
            weight_decay=stage.weight_decay,
            adam_beta1=stage.beta1,
            adam_beta2=stage.beta2,
            max_grad_norm=stage.max_grad_norm,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=rows,
        callbacks=[AfterEachStep(after)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
