"""Experiments: configs to functions, stages, the report. Import its modules one by one."""
