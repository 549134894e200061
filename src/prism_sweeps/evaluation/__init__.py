"""Benchmarks, answers, scorers, runner."""
