"""A stage that trains in a second, for the tests here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from prism_sweeps.config.schema import (
    Backbone,
    Engine,
    LanguageModel,
    Projector,
    Resize,
    Resolution,
    Source,
    Stage,
    Tower,
)
from prism_sweeps.config.specs import ModelSpec, StageSpec
from prism_sweeps.models.resize import image_transform, load_image
from prism_sweeps.tracking.records import Interrupted, JobRecord, Store
from prism_sweeps.training.corpus import read_corpus
from prism_sweeps.training.stage import build_model, train_stage
from prism_sweeps.training.world import Place, World

ENGINE = Engine(name="test", device="cpu", checkpoint_seconds=1e9)


def tower(pixels: int = 32, width: int = 32, depth: int = 3, patch: int = 8) -> Tower:
    shape = {"embed_dim": width, "depth": depth, "num_heads": 4, "patch_size": patch}
    return Tower(
        name="tiny",
        model="vit_tiny_patch16_224",
        kwargs=shape,
        weights={pixels: "random:1"},
        width=width,
        depth=depth,
        heads=4,
        patch=patch,
        prefix_tokens=1,
    )


def llm(width: int = 32, depth: int = 2, context: int = 256) -> LanguageModel:
    return LanguageModel(
        name="tiny",
        weights="random:2",
        prompt="in-out",
        width=width,
        depth=depth,
        heads=4,
        kv_heads=4,
        mlp_width=2 * width,
        vocabulary=258,
        context=context,
    )


def model() -> ModelSpec:
    return ModelSpec(
        backbone=Backbone("tiny", {"tiny": tower()}),
        resolution=Resolution("32", 32),
        resize=Resize("naive", "naive"),
        projector=Projector("mlp", "mlp"),
        llm=llm(),
    )


def stage_spec(**changes: object) -> StageSpec:
    """12 steps of 8 of the 48 conversations; `changes` are fields of StageSpec or Stage."""
    stage = Stage(trains=["projector", "llm"], epochs=2.0, global_batch=8, learning_rate=1e-3, weight_decay=0.1)
    spec = StageSpec("finetune", model(), stage, {"tiny": Source("tiny-chats", "chat.json")}, seed=3)
    of_stage = {key: value for key, value in changes.items() if hasattr(stage, key)}
    of_spec = {key: value for key, value in changes.items() if not hasattr(stage, key)}
    return replace(spec, stage=replace(stage, **of_stage), **of_spec)


def write_chats(root: Path, count: int = 48, turns: int = 3) -> None:
    """`count` conversations of 1 to `turns` questions about flat colours, every sixth without an image."""
    draw = random.Random(0)
    folder = root / "tiny-chats"
    (folder / "images").mkdir(parents=True)
    entries = []
    for number in range(count):
        colour = tuple(draw.randrange(256) for _ in range(3))
        Image.new("RGB", (40, 24), colour).save(folder / "images" / f"{number}.png")
        talk = []
        for _ in range(draw.randint(1, turns)):
            word = draw.choice(["red", "green", "a long answer"])
            talk += [{"from": "human", "value": f"colour {number}?"}, {"from": "gpt", "value": word}]
        entry = {"id": number, "conversations": talk}
        if number % 6:
            entry["image"] = f"images/{number}.png"
        entries.append(entry)
    (folder / "chat.json").write_text(json.dumps(entries))


def open_store(root: Path) -> Store:
    store = Store.open(root)
    if not (store.data / "tiny-chats").is_dir():
        write_chats(store.data)
    return store


def train(
    store: Store,
    name: str = "a" * 16,
    spec: StageSpec | None = None,
    engine: Engine = ENGINE,
    stop: Callable[[], bool] | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """`train_stage` with defaults for a test."""
    record = store.job(name)
    record.path.mkdir(parents=True, exist_ok=True)
    return train_stage(spec or stage_spec(), record, store, engine, quiet, stop or never, world)


def losses_by_transformers(spec: StageSpec, store: Store) -> Iterator[tuple[int, float]]:
    """Of each conversation alone: its supervised tokens and the mean loss over them, as transformers computes it."""
    vlm = build_model(spec, store).eval()
    transform = image_transform(spec.model.backbone, spec.model.resolution, spec.model.resize)
    for example in read_corpus(spec, store, ENGINE, quiet).trained:
        ids_1T = torch.from_numpy(example.ids_T).long()[None]
        labels_1T = torch.where(torch.from_numpy(example.supervised_T), ids_1T, -100)
        embeds = vlm.llm.get_input_embeddings()(ids_1T)
        if example.conversation.image is not None:
            pixels = transform(load_image(example.conversation.image))
            tokens = vlm.image_tokens({name: tensor[None] for name, tensor in pixels.items()})
            embeds = torch.cat([embeds[:, :1], tokens, embeds[:, 1:]], dim=1)
            blank = torch.full((1, tokens.shape[1]), -100)
            labels_1T = torch.cat([labels_1T[:, :1], blank, labels_1T[:, 1:]], dim=1)
        with torch.no_grad():
            yield int(example.supervised_T.sum()), float(vlm.llm(inputs_embeds=embeds, labels=labels_1T).loss)


def quiet(done: int, total: int, note: str) -> None:
    pass


def never() -> bool:
    return False


def weights(record: JobRecord) -> dict[str, torch.Tensor]:
    """MODULE.NAME -> tensor of all that a stage has written."""
    files = sorted(record.weights.glob("*.safetensors"))
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


def world_here(local_size: int = 0) -> World:
    """The world of a process of `ranks.run_ranks`, so many of them on a node (0: all)."""
    rank, size = dist.get_rank(), dist.get_world_size()
    per_node = local_size or size
    place = Place(rank, size, rank % per_node, per_node)
    return World(place, torch.device("cpu"), dist.new_group(backend="gloo"))


def train_as_one_of_many(
    root: Path,
    name: str,
    spec: StageSpec,
    engine: Engine,
    local_size: int = 0,
    stop: Callable[[], bool] | None = None,
) -> str:
    """For `ranks.run_ranks`: how it ended."""
    store = Store.open(root)
    try:
        train(store, name, spec, engine, stop, world_here(local_size))
    except Interrupted:
        return "interrupted"
    return "done"
