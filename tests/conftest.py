"""Before anything else imports torch: one thread, no hub, no telemetry, and the package's cure for torchvision."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from hypothesis import HealthCheck, settings  # noqa: E402

import prism_sweeps  # noqa: E402, F401

# A loaded machine is slow, not wrong.
settings.register_profile("prism", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("prism")
