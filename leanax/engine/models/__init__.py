"""A user's model behind two pure functions or as a `graph.Net`, and a student cut out of its teacher."""

from leanax.engine.models.net import net

__all__ = ["net"]
