"""Grid -> cells -> jobs -> plan, and what it costs. No torch, no submitit, no mlflow."""
