"""Programs that break runs on purpose and count what comes of it, run as `python -m scripts.drills.NAME`."""
