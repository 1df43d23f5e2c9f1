"""The row of a stage (measured in JAX and in the runtime), its charts, and the HTML page of a run."""
