import pytest

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.schema import Cell, Source
from prism_sweeps.config.specs import StageSpec
from prism_sweeps.config.suite import Benchmark, Origin
from prism_sweeps.planning.cost import JobCost, job_cost, model_parameters
from prism_sweeps.planning.datasets import benchmark_examples, known_examples, text_tokens
from prism_sweeps.planning.jobs import jobs_of

BIG = ["suite=easy-vqa", "backbone=clip-vit-l", "resolution=336", "llm=vicuna-v15-7b"]


def cell(*overrides: str) -> Cell:
    return compose_cell(["suite=easy-vqa", *overrides])[0]


def parameters(*overrides: str) -> dict[str, int]:
    return model_parameters(jobs_of(cell(*overrides))[0][0].spec.model)


def test_a_7b_llama_has_its_published_parameters() -> None:
    # Llama 2 7B and Vicuna 1.5 7B: 6,738,415,616 (their checkpoints on the hub)
    assert parameters("llm=llama2-7b")["llm"] == 6_738_415_616


@pytest.mark.parametrize(
    ("backbone", "pixels", "published", "depth"),
    # Whole towers, in millions, as timm builds them; ours lack the last block, the final norm and SigLIP's pooling.
    [("clip-vit-l", 336, 303.5, 24), ("dinov2-vit-l", 224, 303.2, 24), ("in1k-vit-l", 224, 303.3, 24)],
)
def test_vision_parameters_are_the_published_ones_without_a_block(
    backbone: str, pixels: int, published: float, depth: int
) -> None:
    block = 12 * 1024**2 + 13 * 1024
    ours = parameters(f"backbone={backbone}", f"resolution={pixels}")["vision"]
    assert (ours + block) / 1e6 == pytest.approx(published, abs=0.15)


@pytest.mark.parametrize(
    ("backbone", "pixels", "projector", "millions"),
    # Prismatic VLMs: trained projector sizes with a 7B LM
    [
        ("clip-vit-l", 336, "mlp", 20.98),
        ("siglip-so400m", 384, "mlp", 21.50),
        ("dinoclip-vit-l", 336, "fused-mlp", 67.13),
        ("dinosiglip-so400m", 384, "fused-mlp", 71.39),
    ],
)
def test_projector_parameters_are_the_published_ones(
    backbone: str, pixels: int, projector: str, millions: float
) -> None:
    found = parameters(f"backbone={backbone}", f"resolution={pixels}", f"projector={projector}", "llm=llama2-7b")
    assert found["projector"] / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("backbone", "projector", "counted"),
    [
        ("clip-vit-l", "mlp-paper", 1024 * 4096 + 4096 + 4096**2 + 4096),
        ("clip-vit-l", "linear-paper", 1024 * 4096 + 4096),
        ("clip-vit-l", "fused-mlp-4096", 1024 * 4096 + 4096 + 2 * (4096**2 + 4096)),
        ("dinoclip-vit-l", "fused-mlp-4096", 2048 * 4096 + 4096 + 2 * (4096**2 + 4096)),
        ("dinoclip-vit-l", "fused-mlp-paper", 2048 * 8192 + 8192 + 8192 * 4096 + 4096 + 4096**2 + 4096),
    ],
)
def test_projectors_with_widths_of_their_own(backbone: str, projector: str, counted: int) -> None:
    found = parameters(f"backbone={backbone}", "resolution=336", f"projector={projector}", "llm=llama2-7b")
    assert found["projector"] == counted


def training(*overrides: str) -> tuple[StageSpec, JobCost]:
    job = jobs_of(cell("data_mix=easy-vqa", *overrides))[0][-1]
    assert isinstance(job.spec, StageSpec)
    return job.spec, job_cost(job)


def test_adapters_by_hand() -> None:
    """nano-base: width 128, MLP 384, 4 blocks; each adapter has rank x (in + out) weights."""
    spec, whole = training()
    _, lora = training("tuning=lora", "tuning.rank=8")
    adapters = 4 * 8 * (4 * (128 + 128) + 3 * (128 + 384))
    projector = model_parameters(spec.model)["projector"]
    assert lora.trainable == projector + adapters
    assert lora.parameters == whole.parameters + adapters
    _, two = training("tuning=lora", "tuning.rank=8", "tuning.targets=[q_proj,down_proj]")
    assert two.trainable == projector + 4 * 8 * (128 + 128 + 384 + 128)
    # The gradient of the language model's own weights is saved; the adapters' forward and backward are added.
    _, frozen = training("stages.chain.finetune.trains=[projector]")
    assert lora.flops == pytest.approx(frozen.flops + 6 * adapters * lora.tokens)
    assert frozen.flops < lora.flops < whole.flops


def test_adapters_of_a_7b_are_less_than_a_hundredth_of_it() -> None:
    cost = job_cost(jobs_of(compose_cell([*BIG, "stages=one-stage-lora", "tuning=lora"])[0])[0][0])
    adapters = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert cost.trainable == 20_979_712 + adapters
    assert adapters / 6.738e9 == pytest.approx(0.006, abs=0.0005)


def test_the_last_blocks_of_vision_by_hand() -> None:
    """nano-clip: width 128, MLP 256, 4 blocks of which 3 run, 64 patches."""
    full = "stages=nano-full-finetune"
    spec, whole = training(full)
    _, last = training(full, "stages.chain.full-finetune.vision_blocks=1")
    _, every = training(full, "stages.chain.full-finetune.vision_blocks=3")
    _, frozen = training()
    block = 8 * 128**2 + 9 * 128 + 256
    assert last.trainable == frozen.trainable + block
    assert every.trainable == frozen.trainable + 3 * block
    assert whole.trainable == frozen.trainable + model_parameters(spec.model)["vision"]
    assert last.parameters == whole.parameters
    forward = 2 * 8 * 128**2 * 64 + 4 * 64**2 * 128
    assert last.flops == pytest.approx(frozen.flops + 2 * forward * last.examples)


def test_two_towers_train_so_many_blocks_each() -> None:
    fused = ("backbone=nano-dinosiglip", "stages=nano-full-finetune", "stages.chain.full-finetune.vision_blocks=1")
    _, cost = training(*fused)
    _, frozen = training(*fused, "stages.chain.full-finetune.trains=[projector,llm]")
    assert cost.trainable == frozen.trainable + 2 * (8 * 128**2 + 9 * 128 + 256)


def test_flops_of_an_align_step_by_hand() -> None:
    """4 scenes; frozen tower 1x its forward operations, trained projector 3x, frozen LM under a gradient 2x.

    Its attention 3x, whose products have two inputs that a gradient goes back to.
    """
    four = ["data_mix.align.captions.dataset=nano-world-4", "stages=nano-two-stage", "stages.chain.align.epochs=1"]
    align = job_cost(jobs_of(cell("projector=linear", *four))[0][0])
    patches, text, width = 64, 46, 128
    length = patches + text
    tower = 3 * (2 * 8 * width**2 * patches + 4 * patches**2 * width) + 2 * (3 * 8 * 8 * width) * patches
    projector = 2 * width * width * patches
    head = 2 * 1024 * width * text
    lm = 4 * 2 * (4 * width**2 + 3 * width * 384) * length + head
    attention = 4 * 4 * length**2 * width
    assert (align.examples, align.tokens) == (4, 4 * length)
    assert align.flops == pytest.approx(4 * (tower + 3 * projector + 2 * lm + 3 * attention))
    assert align.trainable == width * width + width


def test_a_7b_finetune_is_dominated_by_six_operations_per_weight_and_token() -> None:
    job = jobs_of(compose_cell([*BIG, "stages=one-stage"])[0])[0][0]
    cost = job_cost(job)
    assert cost.tokens is not None
    assert cost.flops == pytest.approx(6 * 6.6e9 * cost.tokens, rel=0.1)
    assert cost.trainable == pytest.approx(6.76e9, rel=0.01)


def test_a_convolutional_tower_costs_what_it_states_for_every_pixel() -> None:
    """Its tower trained whole takes 3x its forward operations; in its last half alone, 1x and 3x of equal halves."""
    short = ["backbone=efficientnet-lite0", "stages=nano-full-finetune", "data_mix=easy-vqa"]

    def cost(*overrides: str) -> JobCost:
        return job_cost(jobs_of(cell(*short, *overrides))[0][0])

    low, high = (cost(f"resolution={pixels}") for pixels in (128, 224))
    half = cost("resolution=128", "stages.chain.full-finetune.vision_blocks=8")
    forward = 15302.4375 * 128**2
    assert low.parameters == high.parameters
    assert low.trainable - half.trainable == 3371008 // 2
    assert low.flops - half.flops == pytest.approx(low.examples * forward * (3 - 2))


def test_epochs_and_max_steps_decide_the_examples() -> None:
    def examples(*overrides: str) -> int | None:
        return job_cost(jobs_of(cell("data_mix=easy-vqa", *overrides))[0][0]).examples

    assert examples("schedule=one-epoch") == 3181 + 2400
    assert examples("schedule.epochs=2") == 2 * (3181 + 2400)
    assert examples("schedule.max_steps=10", "stages.chain.finetune.global_batch=32") == 320
    assert examples("schedule.max_steps=1000000") == 3181 + 2400
    assert examples("data_mix.instruct.easy-vqa.examples=50") == 3181 + 50
    assert examples("data_mix.instruct.easy-vqa.dataset=elsewhere", "data_mix.instruct.easy-vqa.examples=null") is None


def test_unknown_sizes_stay_unknown() -> None:
    train, evaluate = jobs_of(cell("data_mix.instruct.language.dataset=elsewhere"))
    assert (job_cost(train[0]).tokens, job_cost(train[0]).flops) == (None, None)
    assert job_cost(train[0]).parameters > 0
    assert job_cost(evaluate[0]).examples == 9673
    assert benchmark_examples(Benchmark("b", "elsewhere/b")) is None
    assert benchmark_examples(Benchmark("b", "elsewhere/b", examples=5)) == 5
    assert benchmark_examples(Benchmark("b", "nano-benchmarks/b", examples=5000)) == 1000
    assert benchmark_examples(Benchmark("b", "nano-benchmarks-3000/b")) == 3000
    origin = Origin("pope", counts={"all": 8910, "split=a": 2910, "split=b": 3000, "split=c": None})
    assert benchmark_examples(Benchmark("b", "pope", examples=1024, each="split", origin=origin)) == 3072
    assert benchmark_examples(Benchmark("b", "pope", examples=2950, each="split", origin=origin)) == 8810
    assert benchmark_examples(Benchmark("b", "pope", examples=4000, each="split", origin=origin)) == 8910
    assert benchmark_examples(Benchmark("b", "pope", each="split", origin=origin)) == 8910
    assert benchmark_examples(Benchmark("b", "pope", examples=1024, each="colour", origin=origin)) is None


def test_sizes_of_a_mix() -> None:
    mix = {name: Source("nano-world-800", f"{name}/chat.json") for name in ("instruct", "language")}
    assert known_examples(mix) == 900
    assert text_tokens(mix) == round((800 * 177 + 100 * 114) / 900)
    assert known_examples({"x": Source("nano-world-8", "other/chat.json")}) is None


def test_sizes_agree_with_what_is_prepared() -> None:
    from prism_sweeps.data.nano_world.training_sets import Writer, picture
    from prism_sweeps.data.prepare import BENCHMARK_EXAMPLES
    from prism_sweeps.planning.datasets import NANO_BENCHMARK_EXAMPLES, PER_SCENE

    assert NANO_BENCHMARK_EXAMPLES == BENCHMARK_EXAMPLES
    writer, scenes = Writer(), 48
    found = dict.fromkeys(PER_SCENE, 0)
    for number in range(scenes):
        for source in writer.records(picture(number)):
            found[source] += 1
    for source, count in found.items():
        assert count == pytest.approx(scenes * PER_SCENE[source], abs=4), source
