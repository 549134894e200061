"""The smallest model and stage that a job can be told, for tests in which nothing is trained."""

from prism_sweeps.config.schema import Backbone, LanguageModel, Projector, Resize, Resolution, Stage
from prism_sweeps.config.specs import ModelSpec

MODEL = ModelSpec(
    Backbone("nano"), Resolution("64", 64), Resize("naive", "naive"), Projector("mlp", "mlp"),
    LanguageModel("nano", "zoo:nano", "in-out", 64, 2, 4, 4, 128, 512, 128),
)  # fmt: skip
STAGE = Stage(trains=["projector"], global_batch=8, learning_rate=1e-3, epochs=1.0)
