"""Controlled grids over vision-language-model design choices: plan, run, compare."""

from prism_sweeps.torchvision_on_cpu import install

install()
