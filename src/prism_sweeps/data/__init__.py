"""Conversations, mixtures, batching and preparation of training and benchmark data."""
