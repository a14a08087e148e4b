"""An objective and a recipe of a user's own, from outside of the library."""
