"""Output that obeys a JSON schema, a regex, a choice or a grammar: a process of its own beside the engine.

Only that process knows the library. The front end knows the bounds, the engine the messages."""
