"""The 49 configurations of prismatic-vlms and the studies of its paper, against the reference's own lists."""

import csv
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from prism_sweeps.config import published
from prism_sweeps.config.compose import compose_cell, design_space
from prism_sweeps.config.files import PACKAGED
from prism_sweeps.config.schema import AXES
from prism_sweeps.planning.cost import model_parameters
from prism_sweeps.planning.plan import Plan, make_plan, summary

LAUNCH = Path(__file__).parents[2] / "launch" / "paper"
STUDIES = sorted(path.stem for path in (PACKAGED / "study" / "paper").glob("*.yaml"))

# In the reference's own words: id, architecture, vision, language model, resize, stages, data, epochs or steps
# (conf/models.py of TRI-ML/prismatic-vlms at 874c5bb; the data and stages of some stand in its comments only).
REGISTERED = """
reproduction-llava-v15+7b             gelu-mlp       clip-336       vicuna-7b        letterbox  align+finetune      llava-v15        1
reproduction-llava-v15+13b            gelu-mlp       clip-336       vicuna-13b       letterbox  align+finetune      llava-v15        1
one-stage+7b                          gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-v15        1
one-stage+13b                         gelu-mlp       clip-336       vicuna-13b       letterbox  finetune            llava-v15        1
full-ft-multi-stage+7b                gelu-mlp       clip-336       vicuna-7b        letterbox  align+full-finetune llava-v15        1
full-ft-one-stage+7b                  gelu-mlp       clip-336       vicuna-7b        letterbox  full-finetune       llava-v15        1
in1k-224px+7b                         gelu-mlp       in1k-224       vicuna-7b        letterbox  finetune            llava-v15        1
dinov2-224px+7b                       gelu-mlp       dinov2-224     vicuna-7b        letterbox  finetune            llava-v15        1
clip-224px+7b                         gelu-mlp       clip-224       vicuna-7b        letterbox  finetune            llava-v15        1
siglip-224px+7b                       gelu-mlp       siglip-224     vicuna-7b        letterbox  finetune            llava-v15        1
clip-336px-resize-crop+7b             gelu-mlp       clip-336       vicuna-7b        crop       finetune            llava-v15        1
clip-336px-resize-naive+7b            gelu-mlp       clip-336       vicuna-7b        naive      finetune            llava-v15        1
siglip-384px-letterbox+7b             gelu-mlp       siglip-384     vicuna-7b        letterbox  finetune            llava-v15        1
siglip-384px-resize-crop+7b           gelu-mlp       siglip-384     vicuna-7b        crop       finetune            llava-v15        1
siglip-384px-resize-naive+7b          gelu-mlp       siglip-384     vicuna-7b        naive      finetune            llava-v15        1
dinoclip-336px-letterbox+7b           fused-gelu-mlp dinoclip-336   vicuna-7b        letterbox  finetune            llava-v15        1
dinoclip-336px-resize-naive+7b        fused-gelu-mlp dinoclip-336   vicuna-7b        naive      finetune            llava-v15        1
dinosiglip-384px-letterbox+7b         fused-gelu-mlp dinosiglip-384 vicuna-7b        letterbox  finetune            llava-v15        1
dinosiglip-384px-resize-naive+7b      fused-gelu-mlp dinosiglip-384 vicuna-7b        naive      finetune            llava-v15        1
llama2+7b                             gelu-mlp       clip-336       llama2-7b        letterbox  finetune            llava-v15        1
llama2+13b                            gelu-mlp       clip-336       llama2-13b       letterbox  finetune            llava-v15        1
llama2-chat+7b                        gelu-mlp       clip-336       llama2-chat-7b   letterbox  finetune            llava-v15        1
llama2-chat+13b                       gelu-mlp       clip-336       llama2-chat-13b  letterbox  finetune            llava-v15        1
mistral-v0.1+7b                       gelu-mlp       clip-336       mistral          letterbox  finetune            llava-v15        1
mistral-instruct-v0.1+7b              gelu-mlp       clip-336       mistral-instruct letterbox  finetune            llava-v15        1
phi-2+3b                              gelu-mlp       clip-336       phi-2            letterbox  finetune            llava-v15        1
vicuna-no-cotraining+7b               gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-multimodal 1
llama2-no-cotraining+7b               gelu-mlp       clip-336       llama2-7b        letterbox  finetune            llava-multimodal 1
train-1.25-epochs+7b                  gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-v15        6500
train-1.5-epochs+7b                   gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-v15        7800
train-2-epochs+7b                     gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-v15        2
train-3-epochs+7b                     gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-v15        3
llava-lvis4v+7b                       gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-lvis4v     1
llava-lrv+7b                          gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-lrv        1
llava-lvis4v-lrv+7b                   gelu-mlp       clip-336       vicuna-7b        letterbox  finetune            llava-lvis4v-lrv 1
prism-clip-controlled+7b              gelu-mlp       clip-336       llama2-7b        naive      finetune            llava-v15        1
prism-clip-controlled+13b             gelu-mlp       clip-336       llama2-13b       naive      finetune            llava-v15        1
prism-clip+7b                         gelu-mlp       clip-336       llama2-7b        naive      finetune            llava-lvis4v-lrv 2
prism-clip+13b                        gelu-mlp       clip-336       llama2-13b       naive      finetune            llava-lvis4v-lrv 2
prism-siglip-controlled+7b            gelu-mlp       siglip-384     llama2-7b        naive      finetune            llava-v15        1
prism-siglip-controlled+13b           gelu-mlp       siglip-384     llama2-13b       naive      finetune            llava-v15        1
prism-siglip+7b                       gelu-mlp       siglip-384     llama2-7b        naive      finetune            llava-lvis4v-lrv 2
prism-siglip+13b                      gelu-mlp       siglip-384     llama2-13b       naive      finetune            llava-lvis4v-lrv 2
prism-dinosiglip-controlled+7b        fused-gelu-mlp dinosiglip-384 llama2-7b        naive      finetune            llava-v15        1
prism-dinosiglip-controlled+13b       fused-gelu-mlp dinosiglip-384 llama2-13b       naive      finetune            llava-v15        1
prism-dinosiglip+7b                   fused-gelu-mlp dinosiglip-384 llama2-7b        naive      finetune            llava-lvis4v-lrv 2
prism-dinosiglip+13b                  fused-gelu-mlp dinosiglip-384 llama2-13b       naive      finetune            llava-lvis4v-lrv 2
prism-dinosiglip-224px-controlled+7b  fused-gelu-mlp dinosiglip-224 llama2-7b        naive      finetune            llava-v15        1
prism-dinosiglip-224px+7b             fused-gelu-mlp dinosiglip-224 llama2-7b        naive      finetune            llava-lvis4v-lrv 2
"""  # noqa: E501
TOWERS = {
    "clip": ("vit_large_patch14_clip", 1024),
    "siglip": ("vit_so400m_patch14_siglip", 1152),
    "dinov2": ("vit_large_patch14_reg4_dinov2", 1024),
    "in1k": ("vit_large_patch16_224.augreg", 1024),
}
FUSED = {"dinoclip": ("dinov2", "clip"), "dinosiglip": ("dinov2", "siglip")}
PATCHES = {"clip-224": 256, "clip-336": 576, "siglip-224": 256, "siglip-384": 729, "dinov2-224": 256, "in1k-224": 196}
PATCHES |= {"dinoclip-336": 576, "dinosiglip-224": 256, "dinosiglip-384": 729}
HUB = {
    "vicuna-7b": "lmsys/vicuna-7b-v1.5",
    "vicuna-13b": "lmsys/vicuna-13b-v1.5",
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "llama2-13b": "meta-llama/Llama-2-13b-hf",
    "llama2-chat-7b": "meta-llama/Llama-2-7b-chat-hf",
    "llama2-chat-13b": "meta-llama/Llama-2-13b-chat-hf",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "mistral-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
    "phi-2": "microsoft/phi-2",
}
TRAINS = {
    "align": ["projector"],
    "finetune": ["projector", "llm"],
    "full-finetune": ["vision", "projector", "llm"],
}
SIZES = {"llava-v15": 665_298, "llava-multimodal": 624_610, "llava-lrv": 1_008_097}
REGISTRY = [line.split() for line in REGISTERED.strip().splitlines()]


@cache
def plan_of(study: str) -> Plan:
    return make_plan([f"paper/{study}"])


def test_there_are_49_and_the_file_names_no_other() -> None:
    assert len(REGISTRY) == 49
    assert [row[0] for row in REGISTRY] == sorted(published.configurations(), key=[r[0] for r in REGISTRY].index)


@pytest.mark.parametrize("row", REGISTRY, ids=lambda row: row[0])
def test_a_configuration_is_what_the_reference_registers(row: list[str]) -> None:
    name, arch, vision, llm, resize, stages, data, length = row
    choices = published.configurations()[name]
    cell, _ = compose_cell([f"{axis}={choice}" for axis, choice in choices.items()] + ["suite=paper", "engine=gpu"])
    kind, pixels = vision.rsplit("-", 1)
    towers = list(cell.backbone.towers.values())
    wanted = [TOWERS[each] for each in FUSED.get(kind, (kind,))]
    assert [(tower.model.startswith(model), tower.width) for tower, (model, _) in zip(towers, wanted, strict=True)] == [
        (True, width) for _, width in wanted
    ]
    assert cell.resolution.pixels == int(pixels)
    assert {(cell.resolution.pixels // tower.patch) ** 2 for tower in towers} == {PATCHES[vision]}
    assert cell.llm.weights == HUB[llm]
    assert cell.resize.strategy == resize
    assert cell.projector.kind == arch.replace("gelu-", "")
    assert [(stage, part.trains) for stage, part in cell.stages.chain.items()] == [
        (stage, TRAINS[stage]) for stage in stages.split("+")
    ]
    assert cell.data_mix.name == data
    if int(length) > 3:
        assert cell.schedule.max_steps == int(length)
    else:
        assert (cell.schedule.epochs, cell.schedule.max_steps) == (int(length), None)


def test_the_two_faults_of_the_registry_are_not_here() -> None:
    """prism-siglip+13b with CLIP in it, and a 13B name that loads 7B (its conf/models.py and models/registry.py)."""
    every = published.configurations()
    assert every["prism-siglip+13b"]["backbone"] == every["prism-siglip+7b"]["backbone"] == "siglip-so400m"
    assert every["prism-siglip+13b"]["resolution"] == "384"
    assert every["prism-siglip-controlled+13b"]["llm"] == "llama2-13b"


@pytest.mark.parametrize("mix", SIZES)
def test_mixes_have_the_published_sizes(mix: str) -> None:
    sources = design_space().part("data_mix", mix, {}).instruct.values()
    assert sum(source.size for source in sources) == SIZES[mix]


def test_together_the_studies_hold_every_configuration() -> None:
    held = {cell.reference_id for study in STUDIES for cell in plan_of(study).cells}
    assert held == set(published.configurations())


@pytest.mark.parametrize("study", STUDIES)
def test_a_studys_head_tells_its_command_its_cost_and_the_published_numbers(study: str) -> None:
    head = (PACKAGED / "study" / "paper" / f"{study}.yaml").read_text().partition("description:")[0]
    assert f"prism sweep paper/{study}\n" in head
    plan = plan_of(study)
    totals = summary(plan, {})["totals"]
    assert totals["all"]["unknown"] == 0
    told = re.search(r"(\d+) cells, (\d+) training and (\d+) evaluation jobs, ([\d.]+) G tokens, (\d+) EFLOP", head)
    assert told is not None
    cells, train, evaluate, tokens, flops = map(float, told.groups())
    assert (cells, train, evaluate) == (totals["cells"], totals["all"]["train"], totals["all"]["evaluate"])
    assert tokens == pytest.approx(totals["all"]["tokens"] / 1e9, rel=0.02)
    assert flops == pytest.approx(totals["all"]["flops"] / 1e18, rel=0.02)
    with (PACKAGED / "reference" / "prismatic-vlms.csv").open(newline="") as file:
        table = {row[0]: row[1:] for row in csv.reader(file)}
    rows = published.rows()
    for cell in plan.cells:
        assert cell.reference_id is not None, cell.choices
        line = next(line for line in head.splitlines() if line.startswith(f"# {cell.reference_id} "))
        if cell.reference_id in rows:
            assert line.split()[2:] == table[rows[cell.reference_id]]
        else:
            assert "no row in the paper" in line


def test_every_study_has_its_script() -> None:
    assert sorted(path.stem for path in LAUNCH.glob("*.sh")) == STUDIES
    for study in STUDIES:
        script = LAUNCH / f"{study}.sh"
        assert script.stat().st_mode & 0o111
        assert f'exec prism sweep paper/{study} "$@"' in script.read_text()
        subprocess.run(["sh", "-n", script], check=True)


def test_steps_are_the_references() -> None:
    """5,198 of finetuning an epoch and 2,181 of alignment (665,298 / 128 and 558,128 / 256, the last one filled up)."""
    from prism_sweeps.data.order import Corpus, steps_in

    def steps(examples: int, batch: int, epochs: float, limit: int | None) -> int:
        return steps_in("grouped", Corpus(range(examples), [], []), batch, epochs, limit)

    chain = design_space().part("stages", "two-stage", {}).chain
    assert steps(558_128, chain["align"].global_batch, chain["align"].epochs, None) == 2_181
    assert steps(665_298, chain["finetune"].global_batch, 1.0, None) == 5_198
    assert steps(665_298, chain["finetune"].global_batch, 2, 6_500) == 6_500


def test_an_id_is_lost_with_any_change_and_kept_with_another_seed() -> None:
    base = [f"{axis}={choice}" for axis, choice in published.configurations()["one-stage+7b"].items()]
    base += ["suite=paper", "engine=gpu"]
    assert make_plan([*base, "seed=5"]).cells[0].reference_id == "one-stage+7b"
    assert make_plan([*base, "stages.chain.finetune.learning_rate=1e-5"]).cells[0].reference_id is None
    assert make_plan([*base, "tuning=lora"]).cells[0].reference_id is None
    assert make_plan(["backbone=nano-clip"]).cells[0].reference_id is None


def test_prism_plan_json_carries_the_id() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prism_sweeps.cli", "plan", "paper/reproduction", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cells = json.loads(done.stdout)["cells"]
    assert [cell["reference_id"] for cell in cells] == ["reproduction-llava-v15+7b", "reproduction-llava-v15+13b"]


@pytest.mark.parametrize(
    ("arch", "vision", "millions"), [("mlp", "clip-vit-l", 20.98), ("fused-mlp", "dinoclip-vit-l", 67.13)]
)
def test_projectors_have_the_stated_size(arch: str, vision: str, millions: float) -> None:
    job = next(iter(make_plan([f"backbone={vision}", "resolution=336", f"projector={arch}", "llm=vicuna-v15-7b",
                               "stages=one-stage", "data_mix=llava-v15", "suite=paper"]).jobs.values()))  # fmt: skip
    assert model_parameters(job.spec.model)["projector"] / 1e6 == pytest.approx(millions, abs=0.01)


def test_axes_are_all_named() -> None:
    """An axis that came after the paper stands at its default in every configuration."""
    named = set().union(*published.configurations().values())
    assert set(AXES) - named == {"tuning"}
