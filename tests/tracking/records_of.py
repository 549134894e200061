"""One job, whose record tests write."""

from small_jobs import MODEL, STAGE

from prism_sweeps.config.schema import Source
from prism_sweeps.config.specs import Job, StageSpec

FINGERPRINT = "0123456789abcdef"
JOB = Job(FINGERPRINT, "align", StageSpec("align", MODEL, STAGE, {"a": Source("nano-world-8", "chat.json")}, seed=1))
