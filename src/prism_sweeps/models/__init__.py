"""Vision towers, resize, projector, language models, prompts, the VLM."""
