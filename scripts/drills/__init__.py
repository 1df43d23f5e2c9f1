"""Drills: runs that are killed, stopped, starved of disk or changed, and what became of them; `docs/reliability.md`."""
