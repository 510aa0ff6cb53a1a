"""The world of one machine: processes, ports, a state folder."""
