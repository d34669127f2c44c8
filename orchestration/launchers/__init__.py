"""Run launchers that Dagster lacks. Nothing here imports the rest of this project: it can be released alone."""
