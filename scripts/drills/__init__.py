"""Drills: runs that are killed, stopped and starved of disk, and what became of them; `docs/reliability.md`."""
