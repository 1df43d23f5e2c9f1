"""A user's model behind two pure functions, and a student cut out of its teacher."""
