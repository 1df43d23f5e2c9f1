"""Drills: programs that try to break what this library promises, with real processes and hostile files."""
