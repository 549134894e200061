"""Run records on disk, which are the truth, and MLflow, which is fed from them."""
