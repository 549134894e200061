"""Before anything else imports torch: one thread, no hub, no telemetry, and the package's cure for torchvision."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import prism_sweeps  # noqa: E402, F401
