"""A fleet in memory under virtual time. Imports every core; nobody imports it."""
