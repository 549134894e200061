"""The data of a stage: its sources read, checked and put one after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from prism_sweeps.config.errors import DataError
from prism_sweeps.config.schema import Source
from prism_sweeps.data.conversations import Conversation, read_conversations


def read_mixture(sources: Mapping[str, Source], data_root: Path) -> list[Conversation]:
    """All conversations of `sources`, in their order, from the prepared datasets under `data_root`.

    Every image is known to exist afterwards, so that a missing one is an error before training, not in its last hour.
    Raises DataError.
    """
    conversations = [
        conversation
        for name, source in sources.items()
        for conversation in read_conversations(
            data_root / source.dataset / source.file, data_root / source.dataset, name, source.examples
        )
    ]
    if not conversations:
        raise DataError(f"there is nothing to train on: {', '.join(sources) or 'no source'} has no conversations")
    check_images_exist(conversations)
    return conversations


def check_images_exist(conversations: Iterable[Conversation]) -> None:
    """Raises DataError counting the images that are not there. Lists folders: one look per folder, not per image."""
    wanted: defaultdict[Path, list[Conversation]] = defaultdict(list)
    for conversation in conversations:
        if conversation.image is not None:
            wanted[conversation.image.parent].append(conversation)
    missing = [
        conversation
        for folder, group in wanted.items()
        for present in [names_in(folder)]
        for conversation in group
        if conversation.image is not None and conversation.image.name not in present
    ]
    if missing:
        some = "; ".join(f"{conversation.image} of {conversation.name}" for conversation in missing[:3])
        raise DataError(f"{len(missing)} images are missing, the first: {some}")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
