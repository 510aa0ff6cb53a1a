"""A replica of several ranks: what the first tells the others, and how they answer."""
