"""Rows as scorers get them."""

from dataclasses import replace

from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.results import result_of
from prism_sweeps.evaluation.scorers import scorer

PLAIN = Benchmark(name="b", index="b", prompt="{question}", answer="generate", scorer="exact")


def row(answer, gold, score=0.0, image="i", **tags):
    return {"id": "1", "image": image, "answer": answer, "gold": gold, "score": score, "tags": tags}


def score(name, answer, gold, **of_benchmark):
    return scorer(name).score(row(answer, gold), replace(PLAIN, scorer=name, **of_benchmark))


def scored(rows, name, **of_benchmark):
    """The rows with what the scorer gives them."""
    benchmark = replace(PLAIN, scorer=name, **of_benchmark)
    return [one | {"score": scorer(name).score(one, benchmark)} for one in rows]


def result(rows, name, **of_benchmark):
    return result_of(rows, replace(PLAIN, scorer=name, **of_benchmark))


def metrics(rows, name, **of_benchmark):
    return result(rows, name, **of_benchmark)["metrics"]
