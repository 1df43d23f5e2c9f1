"""Tables: the columns of a run, and the tables of the documentation, repeated over seeds."""
