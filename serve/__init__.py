"""HTTP in front of the engine: Ray Serve and FastAPI live here and nowhere else."""
